"""``exact_titan.train`` on hosts with different disks: rank 1 reads another dataset.

tests.titan.train_apart DATASET_OF_RANK_1 [options of exact_titan.train]
"""

import os
import sys

from exact_titan import train

if __name__ == "__main__":
    other, *argv = sys.argv[1:]
    if os.environ["RANK"] == "1":
        argv += ["--dataloader.dataset_path", other]
    train.main(argv)
