"""``exact_titan.train`` with a model that gives NaN for one token, as a defective kernel might.

    tests.titan.poisoned_train HOW TOKEN [options of exact_titan.train]

HOW is ``loss`` (the token's hidden state becomes NaN) or ``gradient`` (only the gradient of the token becomes NaN).
"""

import sys

from exact_titan import train
from exact_titan.titan import cpu, torch_versions

torch_versions.install()
cpu.install()

from exact_titan.titan.trainer import ExactTrainer  # noqa: E402


def main(how: str, token: int, argv: list[str]) -> None:
    class PoisonedTrainer(ExactTrainer):
        def __init__(self, config) -> None:
            super().__init__(config)
            self.model_parts[0].tok_embeddings.register_forward_hook(poison)

    def poison(module, arguments, output):
        here = (arguments[0] == token).unsqueeze(-1)
        if how == "loss":
            return output.masked_fill(here, float("nan"))
        if here.any():
            output.register_hook(lambda gradient: gradient.masked_fill(here, float("nan")))
        return output

    ExactTrainer.Config._owner = PoisonedTrainer
    train.main(argv)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
