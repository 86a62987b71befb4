"""What can be wrong with what a user asked for.

    BadInput                  the request cannot be carried out as written; exit code 2
    ├── UnknownModel          no such model in the catalogue
    ├── ModelError            a model's numbers contradict each other
    ├── InventoryError        the inventory is not a cluster
    └── PlanError             the model cannot be split over these nodes that way
        └── DoesNotFit        it does not fit on their GPUs

Messages are one line: what is wrong, where, and what to do about it.
"""


class BadInput(Exception):
    """The request cannot be carried out as written; nothing was changed."""


class UnknownModel(BadInput):
    """No such model in the catalogue."""


class ModelError(BadInput):
    """A model's numbers contradict each other."""


class InventoryError(BadInput):
    """The inventory is not a cluster."""


class PlanError(BadInput):
    """The model cannot be split over these nodes that way."""


class DoesNotFit(PlanError):
    """The model does not fit on these GPUs; `nearest` is the plan that lacks least."""

    def __init__(self, name: str, missing_bytes: int, nearest: object) -> None:
        super().__init__(
            f"{name} does not fit: each GPU lacks {missing_bytes / 2**30:.1f} GiB; "
            f"`rackserve plan {name}` says what would"
        )
        self.missing_bytes = missing_bytes
        self.nearest = nearest
