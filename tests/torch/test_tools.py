"""PyTorch's tools: compilers, exporters, transforms, and what rewrites or averages models."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.utils.checkpoint import checkpoint

from homeostat import UnsupportedError
from homeostat.torch import BatchNorm1d, BatchNorm2d
from tests.messages import has_three_parts
from tests.torch.conftest import named

# PyTorch's compiler and exporters meet PyTorch's own deprecations.
compiled = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


def ramp(batches: Any) -> dict[str, Any]:
    """Open renorm's bounds over five batches."""
    return {"rmax": 1 + (batches / 5).clamp(max=1.0), "dmax": (batches / 5).clamp(max=1.0)}


OPTIONS: list[dict[str, Any]] = [
    {"activation": "relu"},
    {"renorm": True, "renorm_clipping": {"rmax": 2.0}},
    {"renorm": True, "renorm_clipping": ramp},
    {"virtual_batch_size": 2},
    {"momentum": None},
    {"zero_debias": True, "nonfinite": "raise"},
    {"inference_mode": True, "nonfinite": "propagate"},
]


def trained(**options: Any) -> torch.nn.Sequential:
    """Return a convolution and a batch norm with statistics of their own."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), BatchNorm2d(4, **options))
    with torch.no_grad():
        model[1].weight.normal_()
        model[1].bias.normal_()
    for _ in range(3):
        model(torch.randn(8, 3, 6, 6) * 2 + 1)
    return model


@compiled
@pytest.mark.parametrize(
    ("options", "backend"),
    [*((options, "aot_eager") for options in OPTIONS), ({"activation": "relu"}, "inductor")],
    ids=named,
)
def test_compiles_as_one_graph_for_any_batch(options: dict[str, Any], backend: str) -> None:
    torch._dynamo.reset()
    bn = BatchNorm2d(3, **options)
    plain = copy.deepcopy(bn)
    function = torch.compile(bn, fullgraph=True, dynamic=True, backend=backend)
    for training in (True, False):
        bn.train(training), plain.train(training)
        for batch in (4, 6, 8):
            a = torch.randn(batch, 3, 5, 5)
            if batch == 6 and options.get("nonfinite") != "raise":
                a[0, 1, 2, 2] = torch.nan
            b = a.clone().requires_grad_()
            a.requires_grad_()
            y, expected = function(a, residual=a * 2), plain(b, residual=b * 2)
            torch.testing.assert_close(y, expected, equal_nan=True, rtol=1e-4, atol=1e-5)
            dy = torch.randn(y.shape)
            y.backward(dy), expected.backward(dy)
            torch.testing.assert_close(a.grad, b.grad, equal_nan=True, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dict(bn.named_buffers()), dict(plain.named_buffers()))


@compiled
def test_options_changed_after_compiling_count() -> None:
    torch._dynamo.reset()
    bn, x = BatchNorm1d(3), torch.randn(8, 3)
    function = torch.compile(bn, fullgraph=True, backend="aot_eager")
    function(x)
    bn.frozen_statistics, before = True, bn.running_mean.clone()
    function(x)
    torch.testing.assert_close(bn.running_mean, before)
    bn.frozen_statistics, bn.momentum = False, 1.0
    function(x)
    torch.testing.assert_close(bn.running_mean, x.mean(0))


@compiled
def test_a_compiled_batch_that_is_not_finite_is_counted_but_not_raised() -> None:
    torch._dynamo.reset()
    bn = BatchNorm1d(2, nonfinite="raise")
    x = torch.randn(8, 2)
    x[1, 1] = torch.inf
    torch.compile(bn, fullgraph=True, backend="aot_eager")(x)
    assert bn.skipped_updates.tolist() == [0, 1]
    assert bn.running_mean.isfinite().all()


@compiled
def test_a_compiled_checkpoint_moves_the_statistics_once() -> None:
    torch._dynamo.reset()
    bn, plain = BatchNorm1d(3, activation="relu"), BatchNorm1d(3, activation="relu")
    x = torch.randn(8, 3, requires_grad=True)
    function = torch.compile(
        lambda v: checkpoint(bn, v, use_reentrant=False), fullgraph=True, backend="aot_eager"
    )
    function(x).square().sum().backward()
    (expected,) = torch.autograd.grad(plain(x).square().sum(), x)
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bn.state_dict(), plain.state_dict())


@compiled
@pytest.mark.parametrize("training", [True, False])
def test_exports_for_any_batch(training: bool) -> None:
    model = trained(activation="relu").train(training)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (torch.randn(4, 3, 6, 6),), dynamic_shapes=shapes)
    exported, x = program.module(), torch.randn(600, 3, 6, 6)
    torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)
    state = exported.state_dict()
    torch.testing.assert_close(state["1.running_var"], model[1].running_var)
    assert int(state["1.num_batches_tracked"]) == int(model[1].num_batches_tracked)


@compiled
@pytest.mark.parametrize("dynamo", [True, False], ids=["torch.export", "torchscript"])
@pytest.mark.parametrize(
    "options", [{"activation": "relu"}, {"activation": {"name": "leaky_relu"}}]
)
def test_exports_to_onnx(dynamo: bool, options: dict[str, Any]) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model, file = trained(**options).eval(), io.BytesIO()
    example = (torch.randn(4, 3, 6, 6),)
    if dynamo:
        pytest.importorskip("onnxscript")
        shapes = ({0: "batch"},)
        torch.onnx.export(model, example, dynamo=True, dynamic_shapes=shapes, verbose=False).save(
            file
        )
    else:
        names = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
        torch.onnx.export(model, example, file, dynamo=False, **names)
    session = runtime.InferenceSession(file.getvalue())
    x = torch.randn(7, 3, 6, 6)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(y, model(x).detach(), rtol=1e-4, atol=1e-5)
    # The exporters know the batch norm for one; the newer one folds it into the convolution.
    kinds = [node.op_type for node in onnx.load_from_string(file.getvalue()).graph.node]
    assert kinds[:-1] == (["Conv"] if dynamo else ["Conv", "BatchNormalization"])
    assert kinds[-1] == ("Relu" if options["activation"] == "relu" else "LeakyRelu")


@compiled
def test_torchscript_traces_of_evaluation() -> None:
    bn = trained(activation="relu")[1].eval()
    traced = torch.jit.trace(bn, torch.randn(4, 4, 5, 5))
    for scale in (1.0, 1e4):
        x = torch.randn(7, 4, 3, 2) * scale
        torch.testing.assert_close(traced(x), bn(x))


def test_fx_keeps_the_module_as_one_node() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = BatchNorm2d(3, activation="relu")

        def forward(self, x: Any) -> Any:
            return self.bn(self.bn(x), residual=x) + 1

    block, x = Block(), torch.randn(4, 3, 5, 5)
    graph = torch.fx.symbolic_trace(block)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["bn", "bn"]
    twin = copy.deepcopy(block)
    torch.testing.assert_close(graph(x), twin(x))


def test_models_in_a_stack() -> None:
    models = [torch.nn.Sequential(torch.nn.Linear(4, 3), BatchNorm1d(3)) for _ in range(3)]
    parameters, buffers = stack_module_state(models)
    base, x = copy.deepcopy(models[0]).to("meta"), torch.randn(8, 4)
    x[0, 0] = torch.nan

    def call(p: Any, b: Any) -> Any:
        return functional_call(base, (p, b), (x,))

    y = vmap(call)(parameters, buffers)
    for index, model in enumerate(models):
        torch.testing.assert_close(y[index], model(x), equal_nan=True)
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(buffers[name][index], buffer)
    assert buffers["1.skipped_updates"].tolist() == [[1, 1, 1]] * 3


def test_gradients_by_torch_func() -> None:
    bn, x = BatchNorm1d(3), torch.randn(8, 3)
    parameters, buffers = dict(bn.named_parameters()), dict(bn.named_buffers())

    def loss(p: Any, b: Any) -> Any:
        return functional_call(bn, (p, b), (x,)).pow(3).sum()

    found = grad(loss)(parameters, buffers)
    twin = BatchNorm1d(3)
    twin(x).pow(3).sum().backward()
    torch.testing.assert_close(found["weight"], twin.weight.grad)
    torch.testing.assert_close(bn.running_mean, twin.running_mean)


def test_shared_statistics_under_vmap_are_refused() -> None:
    bn, x = BatchNorm1d(3), torch.randn(5, 8, 3)
    with pytest.raises(UnsupportedError, match="vmap") as caught:
        vmap(bn)(x)
    assert has_three_parts(caught.value)
    for change in ({"frozen_statistics": True}, {"training": False}):
        twin = BatchNorm1d(3)
        for name, value in change.items():
            setattr(twin, name, value)
        expected = torch.stack([twin(part) for part in x])
        torch.testing.assert_close(vmap(twin)(x), expected, rtol=1e-5, atol=1e-5)


# What rewrites models.


@pytest.mark.parametrize("fuse", [fuse_conv_bn_eval, fuse_linear_bn_eval])
def test_folding_is_right_or_refused(fuse: Any) -> None:
    if fuse is fuse_conv_bn_eval:
        model, x = trained().eval(), torch.randn(4, 3, 6, 6)
    else:
        model, x = torch.nn.Sequential(torch.nn.Linear(3, 4), BatchNorm1d(4)), torch.randn(4, 3)
        model(x)
        model.eval()
    torch.testing.assert_close(fuse(*model)(x), model(x), rtol=1e-4, atol=1e-5)
    model[1].activation = "relu"
    with pytest.raises(UnsupportedError, match="lose the activation") as caught:
        fuse(*model)
    assert has_three_parts(caught.value)
    assert model[1].spec.epsilon == 1e-5


def test_conversion_to_natives_synchronized_module_is_right_or_refused() -> None:
    convert = torch.nn.SyncBatchNorm.convert_sync_batchnorm
    model = trained().eval()
    converted, x = convert(copy.deepcopy(model)), torch.randn(4, 3, 6, 6)
    assert isinstance(converted[1], torch.nn.SyncBatchNorm)
    torch.testing.assert_close(converted(x), model(x))
    with pytest.raises(UnsupportedError, match="lose the activation"):
        convert(trained(activation="relu"))


@pytest.mark.parametrize("options", [{}, {"zero_debias": True}, {"activation": "relu"}], ids=str)
def test_update_bn_finds_the_modules(options: dict[str, Any]) -> None:
    ours = torch.nn.Sequential(BatchNorm1d(3, **options))
    native, batches = torch.nn.Sequential(torch.nn.BatchNorm1d(3)), torch.randn(5, 8, 3).unbind()
    for model in (ours, native):
        torch.optim.swa_utils.update_bn(batches, model)
        assert model[0].momentum == 0.1
    for name, buffer in native[0].named_buffers():
        torch.testing.assert_close(getattr(ours[0], name), buffer)


def test_replacing_the_statistics_by_none() -> None:
    bn, x = BatchNorm1d(3), torch.randn(5, 8, 3)
    torch.func.replace_all_batch_norm_modules_(bn)
    expected = torch.stack([torch.nn.BatchNorm1d(3)(part) for part in x])
    torch.testing.assert_close(vmap(bn)(x), expected)


def test_parametrized_weights_are_read() -> None:
    class Doubled(torch.nn.Module):
        def forward(self, weight: Any) -> Any:
            return weight * 2

    bn, x = BatchNorm1d(3), torch.randn(8, 3)
    torch.nn.utils.parametrize.register_parametrization(bn, "weight", Doubled())
    torch.testing.assert_close(bn(x), BatchNorm1d(3)(x) * 2)


def test_moving_to_meta_and_back() -> None:
    bn = BatchNorm2d(3, activation="relu", device="meta", renorm=True)
    assert bn.skipped_updates.device.type == "meta"
    bn.to_empty(device="cpu").reset_parameters()
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(bn(x), BatchNorm2d(3, activation="relu", renorm=True)(x))
    assert bn.skipped_updates.tolist() == [0, 0, 0]


def test_no_warnings_in_ordinary_use() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bn = BatchNorm2d(3)
        bn(torch.randn(4, 3, 5, 5)).sum().backward()
        bn.eval()(torch.randn(1, 3, 5, 5))
