"""Layers and models of PyTorch: compression, statistics, reports, files."""

import copy
import json

import numpy as np
import pytest

import tensorslim

torch = pytest.importorskip("torch")
slim = pytest.importorskip("tensorslim.torch")
from torch import nn  # noqa: E402


def low_rank_(layer, rank):
    """Give a layer a weight of this rank."""
    with torch.no_grad():
        flat = layer.weight.flatten(1)
        flat.copy_(torch.randn(flat.shape[0], rank) @ torch.randn(rank, flat.shape[1]) / flat.shape[1] ** 0.5)
    return layer


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 64), nn.GELU(), nn.Linear(64, 8)).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_slim_linear_layer_computes_what_its_weight_does(dtype, bias):
    layer = low_rank_(nn.Linear(40, 60, bias=bias), 5).to(dtype)
    made = slim.convert_layer_to_slim(layer, rank=5)
    assert isinstance(made, slim.SlimLinear) and made.rank == 5 and made.up.weight.dtype == dtype
    x = torch.randn(2, 7, 40).to(dtype)
    close = {"rtol": 0.1, "atol": 0.1} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    assert torch.allclose(made(x), layer(x), **close) and torch.allclose(made.weight, layer.weight, **close)
    assert (made.bias is None) == (not bias)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 1, "stride": 2},
        {"padding": "same", "dilation": 2},
        {"padding": (2, 1), "padding_mode": "reflect", "bias": False},
    ],
)
def test_a_slim_convolution_computes_what_its_weight_does(options):
    torch.manual_seed(1)
    layer = low_rank_(nn.Conv2d(6, 24, (3, 5), **options), 4)
    made = slim.convert_layer_to_slim(layer, rank=4)
    x = torch.randn(2, 6, 12, 14)
    assert isinstance(made, slim.SlimConv2d) and torch.allclose(made(x), layer(x), atol=1e-5)
    assert torch.allclose(made.weight, layer.weight, atol=1e-5)
    # The patches that calibrate are those that the filters meet.
    c = slim.collect(nn.Sequential(layer), ["0"], [x]).inputs["0"]
    y = layer(x) if layer.bias is None else layer(x) - layer.bias[:, None, None]
    flat = layer.weight.detach().flatten(1).double().numpy()
    assert abs(np.trace(flat @ c.gram() @ flat.T) / (y**2).sum().item() - 1) < 1e-4


def test_conversion_keeps_mode_gradient_and_what_cannot_gain():
    layer = nn.Linear(20, 20)
    assert slim.convert_layer_to_slim(layer, rank=15) is layer
    assert isinstance(slim.convert_layer_to_slim(layer, rank=15, keep_larger=False), slim.SlimLinear)
    layer.weight.requires_grad_(False)
    made = slim.convert_layer_to_slim(layer.eval(), ratio=2)
    assert not made.training and not any(p.requires_grad for p in made.parameters())
    for wrong in (nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Embedding(3, 4)):
        with pytest.raises(TypeError):
            slim.convert_layer_to_slim(wrong, rank=1)
    with pytest.raises(tensorslim.RankError):
        slim.convert_layer_to_slim(layer, rank=21)


def test_a_quality_is_reached():
    layer = nn.Linear(60, 80)
    c = tensorslim.Calibration(60)
    x = torch.randn(400, 60) * torch.linspace(0.01, 2, 60)
    c.update(x)
    made = slim.convert_layer_to_slim(layer, quality=0.9, calibration=c)
    y, z = x @ layer.weight.T, x @ made.weight.T
    assert (y * z).sum() / y.norm() / z.norm() > 0.9 - 1e-4
    plain = slim.convert_layer_to_slim(layer, quality=0.8)
    assert (plain.weight * layer.weight).sum() / plain.weight.norm() / layer.weight.norm() > 0.8 - 1e-4


def test_ratios_of_a_model_are_kept_and_reported():
    model = network()
    before = sum(p.numel() for p in model.parameters())
    made = slim.compress_model(model, ratio=2.0, exclude="4")
    report = made.slim_report
    assert made is model and isinstance(model[0], slim.SlimLinear) and type(model[4]) is nn.Linear
    assert [layer.name for layer in report.layers] == ["0", "2"] and report.layer_ratio >= 2
    assert (report.params_before, report.params_after) == (before, sum(p.numel() for p in model.parameters()))
    data = json.loads(json.dumps(report.to_dict()))
    assert data["layers"][0]["rank"] == model[0].rank and data["ratio"] == report.ratio > 1
    assert "| 0 | 96 x 48 |" in report.to_markdown() and "<td>96 x 48</td>" in report.to_html()


def test_calibration_batches_of_all_kinds_are_sent_through():
    x = torch.randn(64, 48)
    kinds = [[x[:32], x[32:]], [(x,)], [{"input": x}]]
    found = [slim.collect(network(), ["0", "2"], batches).inputs for batches in kinds]
    for inputs in found:
        rows = x.double().numpy()
        assert inputs["0"].samples == 64 and np.allclose(inputs["0"].gram(), rows.T @ rows, atol=1e-3)
    model = network().train()
    made = slim.compress_model(copy.deepcopy(model), ratio=2.0, calibration=kinds[0])
    assert all(module.training for module in made) and not made[0]._forward_hooks
    cosines = [layer.cosine for layer in made.slim_report.layers if layer.action == "factored"]
    assert cosines and all(0 < c <= 1 for c in cosines)
    given = slim.compress_model(copy.deepcopy(model), ratio=2.0, calibration=found[0])
    assert torch.equal(given[0].up.weight, made[0].up.weight)


def test_a_budget_is_kept_by_all_layers_together():
    x = torch.randn(256, 48)
    model = network()
    whole = sum(model[i].weight.numel() for i in (0, 2, 4))
    made = slim.compress_model(copy.deepcopy(model), budget=0.5, calibration=[x])
    after = sum(layer.params_after for layer in made.slim_report.layers)
    assert 0.4 * whole < after <= 0.5 * whole
    exact = slim.compress_model(copy.deepcopy(model), budget=whole // 3)
    assert sum(layer.params_after for layer in exact.slim_report.layers) <= whole // 3
    for wrong in ({"budget": 1.5}, {}, {"budget": 0.5, "ratio": 2.0}):
        with pytest.raises((TypeError, ValueError)):
            slim.compress_model(network(), **wrong)
    with pytest.raises(ValueError, match="no layer"):
        slim.compress_model(network(), ratio=2.0, include="nothing")


def test_what_fails_or_gains_nothing_is_kept_with_a_reason():
    model = network()
    with torch.no_grad():
        model[2].weight[3, 4] = float("nan")
    report = slim.compress_model(model, ratio=2.0).slim_report
    kept = {layer.name: layer.reason for layer in report.layers if layer.action == "kept"}
    assert "nan" in kept["2"].lower() and isinstance(model[0], slim.SlimLinear)
    report = slim.compress_model(network(), ratio=8.0, quality_threshold=0.9999).slim_report
    assert all(layer.action == "kept" for layer in report.layers) and report.ratio == 1


def test_gradients_at_the_outputs_are_those_of_the_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 6)).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    x = torch.randn(2000, 12)
    found = slim.collect(model, ["0", "1"], x.split(500), output_gradients=True, cotangents=2, accumulation="f64")
    assert found.output_gradients["0"].samples == 4000 and found.inputs["0"].samples == 2000
    # For random signs z the gradient at the output of the first layer is z W, so that its second moments are W^T W.
    w = model[1].weight.double().numpy()
    assert np.allclose(found.output_gradients["0"].gram() / 4000, w.T @ w, atol=0.05)
    assert np.allclose(found.output_gradients["1"].gram() / 4000, np.eye(6), atol=0.1)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_a_model_is_saved_and_loaded_with_equal_bits(tmp_path):
    pytest.importorskip("safetensors")
    torch.manual_seed(3)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3, padding=1)
            self.embed = nn.Embedding(32, 64)
            self.body = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
            self.head = nn.Linear(64, 32, bias=False)
            self.head.weight = self.embed.weight

    model = Net()
    assert list(slim.choose_layers(model, include="*")) == ["conv", "body"]
    slim.compress_model(model, ratio=2.0, include=["conv", "body"])
    path = tmp_path / "net.safetensors"
    slim.save_slim(model, path)
    again = slim.load_slim(path, Net())
    state = again.state_dict()
    assert all(torch.equal(t, state[name]) and t.dtype == state[name].dtype for name, t in model.state_dict().items())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again.conv(x), model.conv(x))
    with pytest.raises(tensorslim.FormatError):
        slim.load_slim(path, nn.Sequential(nn.Linear(3, 3)))
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(tensorslim.FormatError):
        slim.load_slim(tmp_path / "other.safetensors", Net())


def bert():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=40,
    )  # fmt: skip
    return transformers.BertModel(config).eval()


def tokens(rows=4, length=12):
    ids = torch.randint(1, 99, (rows, length))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_padding_is_left_out_of_statistics():
    name = "encoder.layer.0.intermediate.dense"
    found = slim.collect(bert(), [name], [tokens()], output_gradients=True)
    assert found.inputs[name].samples == 4 * 12 - 7 == found.output_gradients[name].samples


def test_a_transformer_keeps_attention_embeddings_and_head():
    made = slim.compress_huggingface_model(bert(), ratio=2.0, calibration=[tokens()])
    names = [name for name, module in made.named_modules() if isinstance(module, slim.SlimLinear)]
    assert names == [f"encoder.layer.{i}.{part}.dense" for i in (0, 1) for part in ("intermediate", "output")]
    all_of_it = slim.compress_huggingface_model(bert(), compression_ratio=0.5, layers="all")
    names = [name for name, module in all_of_it.named_modules() if isinstance(module, slim.SlimLinear)]
    assert len(names) == 12 and not any("pooler" in name for name in names)
    ranked = slim.TransformerSlim(ffn_rank=3).compress(bert())
    assert all(layer.rank == 3 for layer in ranked.slim_report.layers)
    good = slim.compress_huggingface_model(bert(), quality_threshold=0.5)
    errors = [layer.weight_error for layer in good.slim_report.layers]
    assert all((1 - e * e) ** 0.5 >= 0.5 - 1e-6 for e in errors)
    assert made(**tokens()).last_hidden_state.shape == (4, 12, 32)


def test_the_layers_of_gpt2_are_converted_and_its_tied_weights_are_not():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=99, n_positions=40, n_embd=32, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    original = copy.deepcopy(model)
    made = slim.compress_huggingface_model(model, ratio=1.5, calibration=[tokens()])
    names = [name for name, module in made.named_modules() if isinstance(module, slim.SlimLinear)]
    assert names == [f"transformer.h.{i}.mlp.{part}" for i in (0, 1) for part in ("c_fc", "c_proj")]
    assert made.lm_head.weight is made.transformer.wte.weight
    layer, wide = made.transformer.h[0].mlp.c_fc, original.transformer.h[0].mlp.c_fc
    assert (layer.in_features, layer.out_features) == (32, 128)
    error = torch.linalg.norm(layer.weight.T - wide.weight) / torch.linalg.norm(wide.weight)
    assert error < 1 and torch.equal(layer.bias, wide.bias)


def test_a_folder_of_models_is_compressed_and_failures_stay_where_they_are(tmp_path):
    bert().save_pretrained(tmp_path / "in" / "good")
    (tmp_path / "in" / "bad").mkdir()
    (tmp_path / "in" / "bad" / "config.json").write_text("{}")
    (tmp_path / "in" / "none").mkdir()
    found = slim.BatchCompressor(ratio=2.0).compress_directory(tmp_path / "in", tmp_path / "out")
    assert set(found) == {"good", "bad"} and isinstance(found["bad"], Exception)
    report = json.loads((tmp_path / "out" / "good" / "slim_report.json").read_text())
    assert report["layer_ratio"] >= 2 and (tmp_path / "out" / "good" / "slim_report.html").exists()
    again, batch = slim.load_slim(tmp_path / "out" / "good"), tokens()
    want = slim.compress_huggingface_model(bert(), ratio=2.0)
    with torch.no_grad():
        assert torch.equal(again(**batch).last_hidden_state, want(**batch).last_hidden_state)
    with pytest.raises(FileNotFoundError):
        slim.BatchCompressor(ratio=2.0).compress_directory(tmp_path / "in" / "none", tmp_path / "out")


@pytest.mark.filterwarnings("ignore")
def test_an_exported_model_runs_in_onnxruntime(tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    onnxruntime = pytest.importorskip("onnxruntime")
    model = slim.compress_model(network(), ratio=2.0)
    path = tmp_path / "net.onnx"
    slim.export_onnx(model, torch.randn(4, 48), path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = torch.randn(9, 48)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert np.abs(y - model(x).detach().numpy()).max() < 1e-4


def test_a_budget_with_an_output_metric_keeps_the_output():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 48), nn.Tanh(), nn.Linear(48, 8))
    batches = [torch.randn(64, 48) / (1 + torch.arange(48)) for _ in range(20)]
    unseen = torch.randn(500, 48) / (1 + torch.arange(48))
    errors = {}
    with torch.no_grad():
        want = model(unseen)
    for name, metric in [("one-sided", None), ("two-sided", lambda output: output)]:
        small = slim.compress_model(
            copy.deepcopy(model), budget=0.4, include=["0", "2"], calibration=batches, output_metric=metric
        )
        with torch.no_grad():
            errors[name] = ((small(unseen) - want).norm() / want.norm()).item()
        assert sum(layer.params_after for layer in small.slim_report.layers) <= 0.4 * 2 * 48 * 96
    assert errors["two-sided"] < errors["one-sided"]
