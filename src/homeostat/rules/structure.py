"""Rules of where norms are in the network, read from its graph."""

from __future__ import annotations

from collections.abc import Iterator

from homeostat.models import LINEAR, Operation
from homeostat.rules.registry import ModelSubject, NormSubject, Outcome, rule

FAR = 64
"""How many operations before a norm are looked at."""


@rule("BN030", "info", needs=("graph",))
def redundant_bias(subject: NormSubject) -> Iterator[Outcome]:
    """A bias is added right before the norm, which takes it away again.

    What it does:
        Finds norms whose input is a convolution or dense layer with a bias, used by nothing else.

    Why is this bad:
        Subtracting the mean removes whatever the bias adds, and beta does its work (Ioffe &
        Szegedy 2015, section 3.2). It costs parameters, optimizer state and an addition; its
        gradient is 0 but for rounding, and weight decay on it says nothing.

    What to do instead:
        Build the layer with `use_bias=False` (Keras) or `bias=False` (PyTorch). In a trained model
        folding takes the bias along.

    Fix safety:
        Safe at inference: `homeostat fold` puts the bias into the folded layer.
    """
    for operation in subject.operations:
        producer = subject.graph.producer(operation.name)
        if producer is None or producer.kind not in LINEAR or not producer.bias:
            continue
        if _feeds_only(subject, producer, operation):
            width = subject.norm.channels
            saved = f"; without it the model has {width} parameters less" if width else ""
            yield subject.find(
                f"the {_word(producer)} before it adds a bias that it takes away{saved}.",
                parameters=width or 0,
            )
            return


@rule("BN031", "info", needs=("graph",))
def after_activation(subject: NormSubject) -> Iterator[Outcome]:
    """The norm comes behind the activation.

    What it does:
        Finds norms whose input is an activation. It is a choice that some networks make, and can
        train as well or better; so this is a piece of information.

    Why is this bad:
        It cannot be folded into the layer before the activation, so it is paid for at inference,
        unless the next layer can take it without padding. Behind ReLU its inputs are half zeros,
        far from normal, and dead units give channels without variance.

    What to do instead:
        For inference speed put the norm between the linear layer and the activation, and train.
    """
    for operation in subject.operations:
        producer = subject.graph.producer(operation.name)
        if producer is not None and producer.kind == "activation":
            yield subject.find("its input is an activation, not a linear operation.")
            return


@rule("BN032", "warning", needs=("graph",))
def behind_dropout(subject: NormSubject) -> Iterator[Outcome]:
    """A dropout before the norm makes variances larger in training than at inference.

    What it does:
        Goes back from the norm, past linear layers, activations, pools and reshapes, to the next
        dropout that no other norm and no sum separates from it. A rate of at least `dropout-rate`
        (0.5) is a warning, a smaller one a piece of information. What it costs a given network
        only data tells: see BN041.

    Why is this bad:
        Dropout at rate p scales what it keeps by 1 / (1 − p), so that the mean is right, but the
        mean square of what it passes on is 1 / (1 − p) times as large in training as at inference.
        The norm learns the larger variance, and at inference, without dropout, divides by too much
        (Li et al. 2018, "Understanding the Disharmony between Dropout and Batch Normalization by
        Variance Shift"). A linear layer between them lessens it where its inputs vary together:
        behind a 3 × 3 convolution we saw a factor of 1.4 at a rate of 0.5.

    What to do instead:
        Put dropout behind the last norm, or lower its rate. Or estimate the statistics in
        inference mode with `homeostat recalibrate`, which leaves dropout off.

    Fix safety:
        Recalibration is safe, but the network was trained with the other variance: compare the
        accuracy before and after.
    """
    for operation in subject.operations:
        dropout = _dropout_before(subject, operation)
        if dropout is None or dropout.rate == 0:
            continue
        rate = dropout.rate
        severe = rate is None or rate >= subject.settings.thresholds.dropout_rate
        if rate is None or not 0 < rate < 1:
            yield subject.find("a dropout comes before it, with no norm between them.")
            return
        yield subject.find(
            f"a dropout of rate {rate:g} comes before it: the mean square of what that passes on "
            f"is {1 / (1 - rate):.2f} times as large in training as at inference.",
            severity="warning" if severe else "info",
            rate=rate,
            ratio=1 / (1 - rate),
        )
        return


def _dropout_before(subject: NormSubject, operation: Operation) -> Operation | None:
    passed = {*LINEAR, "activation", "identity", "pool", "pad", "reshape"}
    for _ in range(FAR):
        if len(operation.inputs) != 1:
            return None
        operation = subject.graph[operation.inputs[0]]
        if operation.kind == "dropout":
            return operation
        if operation.kind not in passed:
            return None
    return None


@rule("BN033", "info", needs=("graph",))
def before_output(subject: NormSubject) -> Iterator[Outcome]:
    """The norm is the last thing before the model's output.

    What it does:
        Finds norms whose result is an output of the model, as it is or through softmax or sigmoid.
        Networks for embeddings and backbones are built like that on purpose, so this is a piece of
        information.

    Why is this bad:
        Logits or regressed values are forced to a fixed mean and standard deviation over the
        batch, whatever is in it. The loss then also depends on the other examples, and errors of
        moving statistics go straight into the predictions, with no layer behind that dampens them.

    What to do instead:
        Leave the norm out before the output of a classifier or a regression.
    """
    for operation in subject.operations:
        if _reaches_output(subject, operation):
            yield subject.find(
                "nothing but softmax or sigmoid, if that, separates it from the output."
            )
            return


def _reaches_output(subject: NormSubject, operation: Operation) -> bool:
    for _ in range(FAR):
        if subject.graph.is_output(operation.name):
            return True
        following = subject.graph.consumers(operation.name)
        if len(following) != 1:
            return False
        operation = following[0]
        squashes = any(word in operation.type.lower() for word in ("softmax", "sigmoid"))
        if operation.kind not in ("identity", "reshape") and not (
            operation.kind == "activation" and squashes
        ):
            return False
    return False


@rule("BN034", "warning", needs=("graph",))
def shared_statistics(subject: NormSubject) -> Iterator[Outcome]:
    """One norm is used at several places, whose inputs share its statistics.

    What it does:
        Finds norms that the network applies two or more times, to different inputs.

    Why is this bad:
        In training each use takes its own batch statistics, but there is one moving mean and
        variance for all: they fit none of the inputs, unless these are alike, as in the two halves
        of a siamese network. Detection heads that share convolutions over scales keep norms apart
        for that reason.

    What to do instead:
        Share the convolution, but give each use a norm of its own.
    """
    operations = subject.operations
    inputs = {operation.inputs for operation in operations}
    if len(inputs) > 1:
        yield subject.find(
            f"it is applied at {len(operations)} places to {len(inputs)} different inputs, with "
            "one moving mean and variance for all.",
            uses=len(operations),
            inputs=len(inputs),
        )


@rule("BN035", "info", needs=("graph",), whole=True)
def foldable(subject: ModelSubject) -> Iterator[Outcome]:
    """Norms can be folded into the layers before them.

    What it does:
        Counts norms with moving statistics behind a convolution or dense layer whose result
        nothing else uses, and adds up the parameters that vanish with them, and the
        multiplications and additions that an example takes less.

    Why is this bad:
        At inference a batch norm multiplies and adds fixed numbers, which the layer before could do
        in its own kernel and bias. As it is, it takes time and memory for nothing.

    What to do instead:
        Fold them with `homeostat fold` before you deploy.

    Fix safety:
        Safe for inference; `homeostat fold` compares the outputs. The folded model cannot go on
        training as it was.
    """
    folded, saved, operations, told = 0, 0, 0, True
    for norm in subject.model.norms:
        one = NormSubject(subject.rule, subject.model, subject.observation, subject.settings, norm)
        uses = one.operations
        if len(uses) != 1 or not {"moving_mean", "moving_variance"} <= set(norm.arrays):
            continue
        producer = subject.graph.producer(uses[0].name)
        if producer is None or not _folds(one, producer, uses[0]):
            continue
        folded += 1
        item = max(array.dtype.itemsize for array in norm.arrays.values())
        arrays = len(norm.arrays) - (0 if producer.bias else 1)
        saved += max(arrays, 0) * (norm.channels or 0) * item
        elements = _elements(uses[0])
        # A multiplication and an addition, but a layer without a bias adds one from now on.
        told = told and elements is not None
        operations += (2 if producer.bias else 1) * (elements or 0)
    if folded:
        fewer = f" and {operations:,} multiplications and additions an example" if told else ""
        total = len(subject.model.norms)
        yield subject.find(
            f"{folded} of {total} norms can be folded: {saved:,} bytes{fewer} less.",
            norms=folded,
            bytes=saved,
            **({"operations": operations} if told else {}),
        )


def _folds(subject: NormSubject, producer: Operation, norm: Operation) -> bool:
    shared = len(subject.graph.calls(producer.layer or producer.name)) > 1
    return producer.kind in LINEAR and not shared and _feeds_only(subject, producer, norm)


def _feeds_only(subject: ModelSubject, producer: Operation, norm: Operation) -> bool:
    """Return whether an operation's result goes into the norm alone, and is no output."""
    graph = subject.graph
    operation = norm
    while operation.name != producer.name:
        before = graph[operation.inputs[0]]
        if len(graph.consumers(before.name)) != 1 or graph.is_output(before.name):
            return False
        operation = before
    return True


def _elements(operation: Operation) -> int | None:
    if operation.shape is None or None in operation.shape[1:]:
        return None
    total = 1
    for size in operation.shape[1:]:
        total *= size or 0
    return total


def _word(operation: Operation) -> str:
    return "dense layer" if operation.kind == "dense" else "convolution"
