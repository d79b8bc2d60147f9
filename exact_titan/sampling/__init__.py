"""Sampling: the order in which a run reads the windows of its packed datasets.

1. :mod:`dataset_path` parses the option ``dataset_path``: one folder, or several folders with or without weights.
2. :mod:`mixture` opens the packed datasets and maps every place of the run to a dataset and a turn. For weighted
   datasets, :mod:`shares` computes the map.
3. :mod:`order` maps every turn of a dataset to a window: each epoch is a new permutation of the dataset's windows.
4. :mod:`run_order` combines the maps: the window at every place of a run.
5. :mod:`balance` distributes the windows of an optimizer step over ranks and microbatches with equal attention work.

Words: a *place* is the index of a window in the global order of the run, counted from 0 over all ranks. A *turn* is the
index of a place among the places of one dataset, counted from 0. Example: the datasets A and B have the weights 2 and
1, and the schedule is A B A, A B A, …. Place 3 is the fourth window of the run. Place 3 belongs to A and is turn 2 of
A, because A also has the places 0 and 2. A turn may be larger than the number of windows: turn 2 of a dataset with two
windows is the first turn of the second epoch.

Places and turns do not depend on the number of ranks. Every map is a pure function of the place, so a run can start at
any place without a list of the earlier places.

The modules use numpy and no torch. The package imports ``dataset`` and ``errors`` from exact_titan.
"""
