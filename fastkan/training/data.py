"""Data sets for training: functions that create data sets, and the function with which ``fit`` reads data sets."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastkan_kernels import check_finite, check_int, check_shape
from fastkan_kernels import validation as kinds

from ..layers.grid import read_sample_weight
from ..network.samples import as_tensor, concatenate_inputs, is_array, is_value_list, samples_as_pair
from .labels import Labels

Pair = tuple[Tensor, Tensor]

# -- making data ----------------------------------------------------------------------------------


@kinds.checked(
    f=kinds.Callback(), n_var=kinds.Int(least=1), f_mode=kinds.Choice(("col", "row")), train_num=kinds.Int(least=1),
    test_num=kinds.INDEX, normalize_input=kinds.FLAG, normalize_label=kinds.FLAG, device=kinds.Device(),
    seed=kinds.SEED, dtype=kinds.DTYPE,
)  # fmt: skip
def create_dataset(
    f: Callable[[Tensor], Tensor],
    n_var: int = 2,
    f_mode: str = "col",
    ranges: Any = (-1.0, 1.0),
    train_num: int = 1000,
    test_num: int = 1000,
    normalize_input: bool = False,
    normalize_label: bool = False,
    device: torch.device | str = "cpu",
    seed: int | None = 0,
    *,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Draw random inputs for training and for testing, and compute their labels with a function.

    The arguments are the same as in pykan, and a seed gives the same numbers as in pykan. The inputs and labels are
    computed on the CPU, so that the data are the same for every device.

    Args:
        f: function from inputs ``[N, n_var]``, a tensor, to labels ``[N, out]`` or ``[N]``, a tensor or a NumPy array.
        n_var: number of variables.
        f_mode: layout of the inputs that ``f`` gets: ``[N, n_var]`` for ``"col"``, and ``[n_var, N]`` for ``"row"``.
            The shape of the labels that ``f`` returns is ``[N, out]`` or ``[N]`` for both layouts.
        ranges: lower and upper bounds of the inputs: two numbers for all variables, or two numbers for each variable.
        train_num, test_num: numbers of rows for training and for testing; ``test_num`` may be 0.
        normalize_input, normalize_label: whether to shift and scale each column of the inputs, or of the labels, to
            mean 0 and standard deviation 1 over the training rows.
        device: device of the returned tensors.
        seed: seed of the random inputs. If None, torch's global generator is used.
        dtype: dtype of the inputs and of labels that are not integers (default: torch's default dtype). For a 16-bit
            dtype, ``f`` is called in float32 and the labels are rounded.

    Returns:
        A dictionary with inputs ``train_input`` and ``test_input`` of the shape ``[N, n_var]`` and labels
        ``train_label`` and ``test_label`` of the shape ``[N, out]``. If the inputs are normalised, the dictionary also
        has their means and standard deviations, ``input_mean`` and ``input_std`` of the shape ``[n_var]``. If the
        labels are normalised, the dictionary also has ``label_mean`` and ``label_std`` of the shape ``[out]``.

    Raises:
        TypeError, ValueError: if arguments are out of range or do not fit together, if labels have the wrong shape or
            are not finite, or if a column to be normalised is constant.

    Example:
        >>> f = lambda x: torch.exp(torch.sin(torch.pi * x[:, [0]]) + x[:, [1]] ** 2)
        >>> dataset = create_dataset(f, n_var=2, train_num=100)
        >>> dataset["train_input"].shape, dataset["test_label"].shape
        (torch.Size([100, 2]), torch.Size([1000, 1]))
    """
    limits = _limits(ranges, n_var)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    generator = _generator(seed)
    exact = torch.float32 if dtype.itemsize == 2 else dtype
    inputs = {"train": torch.empty(train_num, n_var, dtype=exact), "test": torch.empty(test_num, n_var, dtype=exact)}
    for i, (low, high) in enumerate(limits):
        for x in inputs.values():  # pykan also draws the inputs column by column, training rows first
            x[:, i] = torch.rand(len(x), generator=generator, dtype=exact) * (high - low) + low
    dataset: dict[str, Tensor] = {}
    for name, x in inputs.items():
        rounded = x.to(dtype)
        check_finite(f"{name}_input in {dtype}", rounded)
        dataset[f"{name}_input"] = rounded
        dataset[f"{name}_label"] = _labels(f, rounded, exact, f_mode, name)
    for part, normalize in (("input", normalize_input), ("label", normalize_label)):
        if normalize:
            _normalize(dataset, part, exact, dtype)
    return {name: value.to(device) for name, value in dataset.items()}


@kinds.checked(train_ratio=kinds.Real(above=0, most=1), device=kinds.Device(), seed=kinds.SEED)
def create_dataset_from_data(
    inputs: Any, labels: Any, train_ratio: float = 0.8, device: torch.device | str = "cpu", seed: int | None = 0
) -> dict[str, Tensor]:
    """Split a table at random into rows for training and rows for testing.

    Args:
        inputs: inputs ``[N, n_var]``: a tensor, a NumPy array, a DataFrame, or lists of numbers.
        labels: labels ``[N, out]`` or ``[N]``: a tensor, a NumPy array, a DataFrame, or lists of numbers.
        train_ratio: share of the rows that are used for training. The number of training rows is rounded down.
        device: device of the returned tensors.
        seed: seed of the random order of the rows. If None, torch's global generator is used.

    Returns:
        A dictionary with ``train_input``, ``test_input``, ``train_label`` and ``test_label``. The tensors are copies
        and have the dtypes of the arguments.

    Raises:
        TypeError, ValueError: if ``inputs`` is not a table, if ``labels`` has a different number of rows than
            ``inputs``, or if ``train_ratio`` is out of range or leaves no row for training.

    Example:
        >>> dataset = create_dataset_from_data(torch.rand(50, 3), torch.rand(50, 1))
        >>> dataset["train_input"].shape, dataset["test_input"].shape
        (torch.Size([40, 3]), torch.Size([10, 3]))
    """
    x, y = as_tensor("inputs", inputs), as_tensor("labels", labels)
    check_shape("inputs", x, ("N", "n_var"))
    _check_rows("inputs", x, "labels", y)
    count = int(len(x) * train_ratio)
    if count == 0:
        raise ValueError(f"train_ratio={train_ratio} of {len(x)} rows leaves none for training")
    order = torch.randperm(len(x), generator=_generator(seed))
    dataset = {}
    for name, rows in (("train", order[:count]), ("test", order[count:])):
        dataset[f"{name}_input"] = x[rows.to(x.device)].to(device)
        dataset[f"{name}_label"] = y[rows.to(y.device)].to(device)
    return dataset


def _limits(ranges: Any, n_var: int) -> list[tuple[float, float]]:
    entries = list(ranges) if kinds.is_sequence(ranges) else []
    nested = any(map(kinds.is_sequence, entries))
    if not nested and len(entries) != 2:
        raise TypeError(f"ranges must be two numbers, or two for each variable, got {ranges!r}")
    if not nested:
        return [kinds.Bounds().read("ranges", entries)] * n_var
    if len(entries) != n_var:
        raise ValueError(f"ranges must be two numbers, or two for each of n_var={n_var} variables, got {ranges!r}")
    return [kinds.Bounds().read(f"ranges[{i}]", entry) for i, entry in enumerate(entries)]


def _generator(seed: int | None) -> torch.Generator | None:
    seed = kinds.SEED.read("seed", seed)
    return None if seed is None else torch.Generator().manual_seed(seed)


def _labels(f: Callable[[Tensor], Tensor], inputs: Tensor, exact: torch.dtype, f_mode: str, name: str) -> Tensor:
    """Compute and check the labels ``[N, out]``. Floating-point labels get the dtype of the inputs, and integer labels
    keep their dtype."""
    x = inputs.to(exact, copy=True)  # a copy is made because f may write into its argument
    labels = f(x if f_mode == "col" else x.t())
    if not is_array(labels):
        raise TypeError(f"f must return a torch.Tensor or a NumPy array, got {type(labels).__name__}")
    labels = labels if isinstance(labels, Tensor) else as_tensor("the result of f", labels)
    if labels.is_complex():
        raise TypeError(f"f must return real numbers, got {labels.dtype}")
    if labels.ndim not in (1, 2) or len(labels) != len(x) or (labels.ndim == 2 and labels.shape[1] == 0):
        raise ValueError(f"f must return the shape [{len(x)}, out] or [{len(x)}], got {list(labels.shape)}")
    labels = labels.detach().to("cpu", inputs.dtype if labels.is_floating_point() else labels.dtype)
    labels = labels.unsqueeze(1) if labels.ndim == 1 else labels
    bad = (~labels.isfinite()).any(1).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"f must be finite everywhere on ranges, but {len(bad)} of {len(x)} rows of {name}_label are NaN or "
            f"infinite, the first at {[round(value, 6) for value in inputs[bad[0]].tolist()]}"
        )
    return labels


def _normalize(dataset: dict[str, Tensor], part: str, exact: torch.dtype, dtype: torch.dtype) -> None:
    train = dataset[f"train_{part}"].to(exact)
    mean = train.mean(0, keepdim=True)
    std = train.std(0, keepdim=True) if len(train) > 1 else torch.zeros_like(mean)
    constant = (~((std > 0) & std.isfinite()))[0].nonzero().flatten().tolist()
    if constant:
        raise ValueError(
            f"normalize_{part} needs columns that vary, but those of train_{part} at {constant[:8]} do not"
        )
    for name in (f"train_{part}", f"test_{part}"):
        dataset[name] = ((dataset[name].to(exact) - mean) / std).to(dtype)
    dataset[f"{part}_mean"], dataset[f"{part}_std"] = mean[0], std[0]


# -- reading data ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """The checked training and test data that :func:`read_data` returns, in the dtype and on the device of a network.

    Args:
        train_input: inputs ``[N, in]`` for training; if the data come from a loader, the inputs of the first batch.
        train_label: labels for training, with N rows.
        test_input, test_label: inputs and labels for testing, or None.
        loader: function that returns an endless iterator over the batches of a loader, or None if the data do not come
            from a loader.
        labels: the form of the labels that the loss accepts.
        weight: weights ``[N]`` of the training rows in float64, all positive and with a mean of at least 1, or None.
        loaded: inputs of all batches of a loader, at most 10,000 rows, or None if the data do not come from a loader.
    """

    train_input: Tensor
    train_label: Tensor
    test_input: Tensor | None = None
    test_label: Tensor | None = None
    loader: Callable[[], Iterator[Pair]] | None = None  # returns an endless iterator of a loader's batches
    labels: Labels | None = None  # the form of the labels that the loss takes
    epoch: Callable[[], Iterator[Pair]] | None = None  # returns an iterator over the loader's batches
    loaded: Tensor | None = None  # inputs of all batches of a loader, 10,000 rows at most
    weight: Tensor | None = None  # weights of the training rows

    @property
    def rows(self) -> Tensor:
        """The inputs for training; if the data come from a loader, the inputs of all batches, at most 10,000 rows."""
        return self.train_input if self.loaded is None else self.loaded

    @property
    def train(self) -> Pair:
        """The pair of inputs and labels for training."""
        return self.train_input, self.train_label

    @property
    def total_weight(self) -> float:
        """The sum of the weights of the training rows, or the number of training rows if there are no weights."""
        return float(len(self.train_input) if self.weight is None else self.weight.sum())

    @property
    def _parts(self) -> Any:
        """The pair ``train``, or a triple with the weights divided by their mean if there are weights."""
        if self.weight is None:
            return self.train
        return *self.train, (self.weight / self.weight.mean()).to(self.train_input.dtype)

    @property
    def test(self) -> Pair | None:
        """The pair of inputs and labels for testing, or None if there are no test data."""
        return None if self.test_input is None or self.test_label is None else (self.test_input, self.test_label)

    def batches(self, batch: int = -1, seed: int | None = 0) -> Iterator[Any]:
        """Return an endless iterator over batches ``(x, y)`` or, if there are weights, ``(x, y, weight)`` with weights
        of mean 1 over all rows.

        Args:
            batch: number of rows in each batch. If ``batch`` is -1 or at least the number of rows, each batch consists
                of all rows, without a copy. Otherwise each pass over the data has a new random order, and rows at the
                end of a pass are skipped if they are too few for a batch.
            seed: seed of the random order of the rows, which is the same on every device. If None, torch's global
                generator is used.

        Raises:
            TypeError, ValueError: if ``batch`` is neither -1 nor at least 1, or if ``batch`` is given although the data
                come from a loader, which makes its own batches.
        """
        if batch != -1:
            check_int("batch", batch, least=1)
        if self.loader is not None:
            if batch != -1:
                raise ValueError(f"batch must be -1 where a loader makes the batches, got {batch}")
            return self.loader()
        if batch == -1 or batch >= len(self.train_input):
            return itertools.repeat(self._parts)
        return self._shuffled(batch, _generator(seed))

    def one_pass(self, batch: int = -1) -> Iterator[Any]:
        """Return an iterator over batches as in :meth:`batches` that contain every row once.

        Args:
            batch: number of rows of each batch, or -1 for all rows. A loader makes its own batches.
        """
        if self.epoch is not None:
            return self.epoch()
        return iter([self._parts]) if batch == -1 else zip(*(part.split(batch) for part in self._parts))

    def _shuffled(self, batch: int, generator: torch.Generator | None) -> Iterator[Any]:
        parts = self._parts
        count, device = len(parts[0]), parts[0].device
        while True:
            order = torch.randperm(count, generator=generator).to(device)
            for rows in order[: count // batch * batch].split(batch):
                yield tuple(part[rows] for part in parts)


def read_data(
    dataset: Any,
    *,
    in_features: int,
    out_features: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Data:
    """Check a data set for training, and convert the data to the dtype and device of a network.

    Args:
        dataset: the data set, in one of four forms. The first form is a dictionary with ``train_input``,
            ``train_label`` and optionally ``test_input`` and ``test_label``; other entries, and test data without rows,
            are ignored. The second form is a pair ``(x, y)``. The third form is an iterable of pairs ``(x, y)`` that
            can be iterated over repeatedly, for example a DataLoader or a list. The fourth form is a
            ``torch.utils.data.Dataset`` of samples, all of which are read. Inputs and labels may be tensors, NumPy
            arrays, DataFrames or lists of numbers.
        in_features: number of columns of the inputs.
        out_features: number of columns of the network's output.
        device, dtype: device and dtype of the network. If ``dtype`` is None, torch's default dtype is used.
        loss_fn: the loss function that gets the labels, or None for the mean squared error. For the mean squared error,
            labels are ``[N, out_features]`` and are converted to floating point; labels ``[N]`` become ``[N, 1]`` if
            the network has one output. For any other loss, integers ``[N]`` count as classes if the network has several
            outputs, and labels that cannot be broadcast against the output are passed to the loss unchanged.

    Raises:
        TypeError, ValueError: if ``dataset`` has none of the four forms, if the data have no rows or contain NaN or
            infinities, or if a loss would broadcast the labels against the output. The later batches of a loader are
            checked only when they are read.
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    labels = Labels(loss_fn, out_features, dtype)
    form = _Form(in_features, torch.device(device), dtype, labels)
    if isinstance(dataset, Mapping):
        missing = [name for name in ("train_input", "train_label") if name not in dataset]
        if missing:
            raise ValueError(f"dataset must have train_input and train_label, got only {list(dataset)}")
        if ("test_input" in dataset) != ("test_label" in dataset):
            raise ValueError(f"dataset must have both of test_input and test_label or neither, got {list(dataset)}")
        train = form.read(dataset["train_input"], dataset["train_label"], "train_input", "train_label")
        if "test_input" not in dataset:
            return Data(*train, labels=labels)
        test = form.read(dataset["test_input"], dataset["test_label"], "test_input", "test_label", least=0)
        return Data(*train, *test, labels=labels) if len(test[0]) else Data(*train, labels=labels)
    dataset = samples_as_pair(dataset)
    is_pair = isinstance(dataset, (tuple, list)) and len(dataset) == 2
    if is_pair and all(is_array(part) or is_value_list(part) for part in dataset):
        return Data(*form.read(dataset[0], dataset[1], "x", "y"), labels=labels)
    if isinstance(dataset, Iterator):
        raise TypeError(
            f"dataset must be an iterable that can be iterated over more than once, got {type(dataset).__name__}: "
            "put its batches in a list"
        )
    if is_array(dataset) or not (isinstance(dataset, Iterable) or hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"dataset must be a dictionary with train_input and train_label, a pair (x, y) of tensors, or a loader "
            f"of such pairs, got {type(dataset).__name__}"
        )

    def epoch() -> Iterator[Pair]:
        number = -1
        for number, batch in enumerate(dataset):
            if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
                got = type(batch).__name__ + (f" of length {len(batch)}" if isinstance(batch, (tuple, list)) else "")
                raise TypeError(f"batch {number} of dataset must be a pair (x, y), got {got}")
            yield form.read(batch[0], batch[1], f"x of batch {number}", f"y of batch {number}")
        if number == -1:
            raise ValueError("dataset must have at least one batch, got none")

    def loader() -> Iterator[Pair]:
        while True:
            yield from epoch()

    batches = epoch()
    first = next(batches)
    loaded = concatenate_inputs(itertools.chain([first], batches))
    return Data(*first, loader=loader, labels=labels, epoch=epoch, loaded=loaded)


def with_sample_weight(data: Data, sample_weight: Any) -> Data:
    """Return the data with weights of the training rows, and without the rows whose weight is 0.

    If the mean of the weights is below 1, the weights are divided by their mean. Grid updates and the estimate of the
    noise treat a row of weight 2 as two rows, so weights much smaller than 1 would count as fewer rows than there are.

    Raises:
        TypeError, ValueError: if the data come from a loader, or if the weights have the wrong shape, are negative or
            not finite, or are all 0.
    """
    if data.loader is not None:
        raise ValueError("sample_weight needs a dataset whose rows are known, got a loader; pass (x, y) instead")
    weight = read_sample_weight(as_tensor("sample_weight", sample_weight), len(data.train_input))
    rows = (weight > 0).nonzero().flatten()
    weight = weight[rows] / weight[rows].mean().clamp(max=1.0)
    x, y = (part[rows.to(part.device)] for part in data.train)
    return replace(data, train_input=x, train_label=y, weight=weight.to(x.device))


class _Form(NamedTuple):
    """The number of features, the device, the dtype and the label format that inputs and labels must have."""

    in_features: int
    device: torch.device
    dtype: torch.dtype
    labels: Labels

    def read(self, inputs: Any, labels: Any, x_name: str, y_name: str, least: int = 1) -> Pair:
        x, y = as_tensor(x_name, inputs), as_tensor(y_name, labels)
        check_shape(x_name, x, ("N", self.in_features))
        _check_rows(x_name, x, y_name, y)
        if len(x) < least:
            raise ValueError(f"{x_name} must have at least one row, got none")
        new_y = self.labels.read(y_name, y, len(x)).to(self.device)
        check_finite(y_name if new_y.dtype == y.dtype else f"{y_name} in {new_y.dtype}", new_y)
        new_x = x.to(self.device, self.dtype)
        check_finite(x_name if new_x.dtype == x.dtype else f"{x_name} in {new_x.dtype}", new_x)
        return new_x, new_y


def _check_rows(x_name: str, x: Tensor, y_name: str, y: Tensor) -> None:
    if y.ndim == 0 or len(y) != len(x):
        raise ValueError(
            f"{y_name} must have as many rows as {x_name}, got the shapes {list(y.shape)} and {list(x.shape)}"
        )
