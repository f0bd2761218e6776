"""Fine-tuning: it learns, its stages are what they say, and it resumes exactly."""

import copy
import dataclasses
import shutil
import sys
from collections import namedtuple

import pytest
import torch
from torch import nn

import binarize
from binarize import api
from binarize.errors import UnsupportedModelError, UsageError
from binarize.nn import BinaryConv2d, ElasticLink, binary_conv
from binarize.preprocessing import Preprocessing
from binarize.training import adapt_float, evaluate
from binarize.training.calibration import calibrate, reestimate_batch_norm
from binarize.training.data import TensorImages, make_loader
from binarize.training.evaluate import logits_of
from binarize.training.finetune import HARMLESS_SETTINGS, float_accuracy, what_matters
from binarize.training.stages import binary_stages
from binarize.training.trainer import TrainingDiverged, keeping_forward
from tests.models import BasicBlock, conv_bn

SIZE = (1, 8, 8)


def images(count=256, seed=0, classes=4):
    """Bright quadrant = class, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    pixels = 60 + 40 * torch.randn(count, 1, 8, 8, generator=generator)
    for i, label in enumerate(labels.tolist()):
        row, column = divmod(label % 4, 2)
        pixels[i, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 110
    return TensorImages(pixels.clamp(0, 255).to(torch.uint8), labels, [str(i) for i in range(classes)])


def net():
    torch.manual_seed(0)
    return nn.Sequential(conv_bn(1, 8), BasicBlock(8, 16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


TWO_STAGES = (
    'training.stages=[{name="activations", weights="float", weight_rate=0.1}, {name="binary", teacher="previous"}]'
)


def config(*values):
    common = ["training.batch_size=32", "training.augment=none", "training.mean=0.5", "training.std=0.5"]
    common += [
        "training.calibration_images=64",
        "training.bn_images=64",
        "training.holdout=0.1",
        "training.epochs=2",
    ]
    return api.resolve_config("el", None, [*common, *values])


def binarized(settled, model=None):
    return binarize.apply(model or net(), torch.zeros(2, *SIZE), config=settled)


@pytest.fixture(scope="module")
def teacher():
    model = net()
    adapt_float(
        model,
        images(),
        config("training.float_epochs=6", "training.float_learning_rate=0.1"),
        input_size=SIZE,
    )
    return model


def score(module):
    loader = make_loader(
        images(seed=1), input_size=SIZE, batch_size=64, train=False, seed=0, epoch=0, mean=(0.5,), std=(0.5,)
    )
    return evaluate(module, loader)["top1"]


def test_it_learns_from_the_float_model_which_stays_as_it_is(teacher):
    assert score(teacher) > 0.95
    before = copy.deepcopy(teacher.state_dict())
    settled = config("training.epochs=6")
    module = binarized(settled, teacher)
    untrained = score(module)
    binarize.finetune(module, teacher, images(), val_data=images(seed=1))
    assert score(module) > max(0.9, untrained)
    assert not module.training
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    training = module.report.results["training"]
    assert len(training["history"]) == 6
    assert training["val_top1"] == score(module)
    assert {"stage", "loss", "train_top1", "val_top1", "images_per_second", "flips"} <= set(training["history"][0])
    assert training["history"][0]["flips"] > 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_forward_passes_have_the_precision_asked_for_and_channels_last(teacher, precision, monkeypatch):
    """What a GPU gets by `auto`, here on a CPU; it learns as well."""
    settled = config("training.epochs=6", f"training.precision={precision}", "training.compile=off")
    module, seen = binarized(settled, teacher), set()
    convolve = binary_conv.convolve

    def look(x, weight, *rest):
        products = convolve(x, weight, *rest)
        if torch.is_grad_enabled():
            seen.add((products.dtype, x.is_contiguous(memory_format=torch.channels_last)))
        return products

    monkeypatch.setattr(binary_conv, "convolve", look)
    binarize.finetune(module, teacher, images())
    assert seen == {(getattr(torch, precision), True)}
    assert all(p.dtype is torch.float32 for p in module.parameters())
    assert score(module) > 0.9


def test_stage_one_trains_float_weights_behind_binary_activations(teacher):
    settled = config(TWO_STAGES)
    module = binarized(settled, teacher)
    bits = []

    def watch(event):
        bits.append(next(m.weight_bits for m in module.modules() if isinstance(m, BinaryConv2d)))

    binarize.finetune(module, teacher, images(), progress=watch)
    assert [h["stage"] for h in module.report.results["training"]["history"]] == ["activations", "binary"]
    assert bits == sorted(bits, reverse=True) and set(bits) == {32, 1}
    assert {m.weight_bits for m in module.modules() if isinstance(m, BinaryConv2d)} == {1}


@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_resuming_gives_the_same_bits_as_never_stopping(teacher, tmp_path, how):
    settled = config(TWO_STAGES, "training.checkpoint_minutes=0")
    whole = binarized(settled, teacher)
    binarize.finetune(whole, teacher, images())
    checkpoint, copied = tmp_path / "c.ckpt", tmp_path / "copy.ckpt"

    def stop(event):
        if event.task.startswith("training") and event.done == 10:  # of 14, in the second stage
            shutil.copy(checkpoint, copied)
            if how == "interrupted":
                raise KeyboardInterrupt

    first = binarized(settled, teacher)
    if how == "interrupted":
        with pytest.raises(KeyboardInterrupt):
            binarize.finetune(first, teacher, images(), checkpoint=checkpoint, progress=stop)
    else:
        binarize.finetune(first, teacher, images(), checkpoint=checkpoint, progress=stop)
        shutil.move(copied, checkpoint)  # what a kill at that moment would have left
    steps = []
    second = binarized(settled, teacher)
    binarize.finetune(
        second, teacher, images(), checkpoint=checkpoint, progress=lambda e: steps.append((e.task, e.done))
    )
    done = [d for task, d in steps if task.startswith("training")]
    assert min(done) >= 10
    for a, b in zip(*(m.report.results["training"]["history"] for m in (whole, second)), strict=True):
        timed = {"seconds", "images_per_second"}
        assert {k: v for k, v in a.items() if k not in timed} == {k: v for k, v in b.items() if k not in timed}
    for (name, a), b in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_checkpoint_of_another_run_is_refused(teacher, tmp_path):
    checkpoint = tmp_path / "c.ckpt"
    binarize.finetune(binarized(config(), teacher), teacher, images(), checkpoint=checkpoint)
    other = config("training.learning_rate=0.001")
    with pytest.raises(UsageError, match=r"another model, teacher, configuration or data"):
        binarize.finetune(binarized(other, teacher), teacher, images(), checkpoint=checkpoint)
    another = copy.deepcopy(teacher)
    with torch.no_grad():
        next(another.parameters()).mul_(1.5)
    with pytest.raises(UsageError, match="another model, teacher"):
        binarize.finetune(binarized(config(), teacher), another, images(), checkpoint=checkpoint)
    checkpoint.write_bytes(b"damaged")
    with pytest.raises(UsageError, match="is damaged or none of binarize"):
        binarize.finetune(binarized(config(), teacher), teacher, images(), checkpoint=checkpoint)


def test_divergence_is_an_error_with_the_way_out(teacher):
    settled = config("training.learning_rate=1e9")
    with pytest.raises(TrainingDiverged, match="learning_rate"):
        binarize.finetune(binarized(settled, teacher), teacher, images())


def test_data_that_does_not_fit_is_told_before_training(teacher):
    with pytest.raises(UsageError, match="classes"):
        binarize.finetune(binarized(config(), teacher), teacher, images(classes=3))
    with pytest.raises(UsageError, match="batch_size"):
        binarize.finetune(binarized(config(), teacher), teacher, images(count=30))


@pytest.mark.parametrize("classes", [("0", "1", "2"), ("1", "2", "3", "4"), ("0", "1", "2", "3", "4")])
def test_validation_data_of_other_classes_is_refused_before_any_training(teacher, classes):
    train_set = images(64)
    val_set = TensorImages(train_set.images[: len(classes)], torch.arange(len(classes)), classes, "val")
    model, settled = net(), config("training.float_epochs=1", "training.holdout=0")
    module = binarized(settled, teacher)
    before = copy.deepcopy((model.state_dict(), module.state_dict()))
    for train in (
        lambda: adapt_float(model, train_set, settled, input_size=SIZE, val_set=val_set),
        lambda: binarize.finetune(module, teacher, train_set, val_data=val_set),
    ):
        with pytest.raises(UsageError, match=r"val: the validation data's classes .* are not the training data's 0, 1"):
            train()
    for trained, start in zip((model, module), before, strict=True):
        assert all(torch.equal(value, start[name]) for name, value in trained.state_dict().items())


def test_divergence_of_a_float_model_names_its_own_rate():
    with pytest.raises(TrainingDiverged, match="float_learning_rate"):
        adapt_float(
            net(), images(), config("training.float_epochs=1", "training.float_learning_rate=1e30"), input_size=SIZE
        )


def test_calibration_sets_medians_and_inserted_norms():
    model = nn.Sequential(conv_bn(1, 8), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    module = binarized(config(), model)
    x = torch.randn(64, *SIZE)
    calibrate(module, model, [x])
    conv, norm = module.get_submodule("1"), module.get_submodule("1_bn")
    seen = []
    conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        module.train()(x)
        out = model[1](model[0].eval()(x))
    median = seen[0].transpose(0, 1).flatten(1).median(1).values
    torch.testing.assert_close(conv.threshold.detach(), median)
    torch.testing.assert_close(norm.weight.detach(), out.std((0, 2, 3)))
    torch.testing.assert_close(norm.bias.detach(), out.mean((0, 2, 3)))


def test_reestimation_replaces_statistics_and_leaves_the_rest():
    module = binarized(config()).eval()
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    x = torch.randn(32, *SIZE) * 3 + 1
    reestimate_batch_norm(module, [x, x])
    assert all(norm.momentum == 0.1 and not norm.training for norm in norms)
    first = module.get_submodule("0.0")(x)
    torch.testing.assert_close(norms[0].running_mean, first.mean((0, 2, 3)).detach())


def test_learning_rates_follow_each_layers_scale():
    module = binarized(config())
    with torch.no_grad():
        module.get_submodule("1.conv1").weight.mul_(100)
    stage = binary_stages(config("training.warmup=0.05").training)[-1]
    rates = {id(g["params"][0]): g["lr"] for g in stage.optimizer(module).param_groups}
    weights = [module.get_submodule(f"1.conv{i}").weight for i in (1, 2)]
    steps = [rates[id(w)] / float(w.detach().abs().mean()) for w in weights]
    assert steps == pytest.approx([0.08, 0.08])
    assert stage.rate(0, 100) < stage.rate(5, 100) == 1.0 > stage.rate(99, 100)


def test_every_gamma_and_threshold_is_trained(teacher):
    module = binarized(config(), teacher)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    binarize.finetune(module, teacher, images())
    moved = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    wanted = {n for n in before if n.endswith(("gamma", "threshold", "slope"))}
    assert wanted <= moved
    assert any(isinstance(m, ElasticLink) for m in module.modules())


class Viewing(nn.Module):
    """Its maps become vectors by a view, which maps with channels innermost do not have."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(conv_bn(1, 8), BasicBlock(8, 16, 2)), nn.Linear(256, 4)

    def forward(self, x):
        return self.head(self.body(x).view(-1, 256))


def test_models_that_view_maps_as_vectors_train():
    torch.manual_seed(0)
    model = Viewing()
    module = binarized(config(), model)
    binarize.finetune(module, model, images(), val_data=images(64, seed=1))
    assert module.report.results["training"]["history"][-1]["val_top1"] > 0.25
    assert float_accuracy(model, images(64, seed=1), config(), SIZE, print) >= 0


def test_scores_among_several_outputs():
    scores, others = torch.zeros(2, 4), torch.zeros(2, 3)
    named = namedtuple("Outputs", ["aux", "logits"])
    for output in (scores, (scores, others), [scores], {"aux": others, "logits": scores}, named(others, scores)):
        assert logits_of(output) is scores
    for output in (torch.zeros(2, 3, 4), (), {"other": scores}, None):
        with pytest.raises(UnsupportedModelError, match="not class scores"):
            logits_of(output)


@pytest.mark.parametrize(("size", "classes"), [((3, 8, 8), 4), (SIZE, 9)])
def test_a_float_model_that_does_not_fit_its_data_is_told(teacher, size, classes):
    with pytest.raises((UsageError, UnsupportedModelError), match=r"3 x 8 x 8|classes"):
        float_accuracy(teacher, images(64, classes=classes), config(), size, print)


def test_what_is_no_set_of_images_is_refused(teacher):
    pairs = torch.utils.data.TensorDataset(torch.zeros(4, *SIZE), torch.zeros(4))
    with pytest.raises(UsageError, match="TensorDataset is no labelled set of images"):
        binarize.finetune(binarized(config(), teacher), teacher, pairs)


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")], ids=["parallel", "compiled"]
)
def test_a_wrapped_teacher_is_the_one_inside(teacher, wrap):
    settled, first = config(), torch.randn(8, *SIZE)
    plain, wrapped = binarized(settled, teacher), binarized(settled, teacher)
    wrapper = wrap(copy.deepcopy(teacher)).train()
    binarize.calibrate(plain, teacher, first)
    binarize.calibrate(wrapped, wrapper, first)
    for (name, a), b in zip(plain.state_dict().items(), wrapped.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert wrapper.training, "calibration leaves its teacher's mode"


def test_a_file_says_how_it_was_trained_not_how_it_was_planned(teacher):
    module = binarized(config(), teacher)
    other = config("training.mean=0.25", "training.epochs=0.5")
    binarize.finetune(module, teacher, images(), config=other)
    assert module.report.config == api.settle_preprocessing(other, Preprocessing())[0].to_dict()
    assert module.report.config["training"]["mean"] == [0.25]
    binarize.finetune(module, teacher, images(), config=config("link.kind=none", "training.epochs=0.2"))
    assert module.report.config["link"] == other.to_dict()["link"], "that is what surgery did"
    assert module.report.config["training"]["epochs"] == 0.2


def test_frozen_weights_are_refused(teacher):
    frozen = copy.deepcopy(teacher).requires_grad_(False)
    module = binarized(config(), frozen)
    with pytest.raises(UsageError, match="weights are frozen"):
        binarize.finetune(module, frozen, images())
    with pytest.raises(UsageError, match="weights are frozen"):
        adapt_float(frozen, images(), config("training.float_epochs=1"), input_size=SIZE)
    binarize.finetune(module.requires_grad_(True), frozen, images(), config=config("training.epochs=0.2"))


def test_held_out_images_do_not_count_as_a_batch(teacher):
    with pytest.raises(UsageError, match=r"232 training images without the 24 that are held out") as raised:
        binarize.finetune(binarized(config("training.batch_size=250"), teacher), teacher, images())
    assert "training.batch_size=232" in str(raised.value)
    settled = config("training.batch_size=232", "training.epochs=1")
    binarize.finetune(binarized(settled, teacher), teacher, images())


def test_another_precision_is_taken_off_behind_a_stage():
    module = net()
    with keeping_forward(module):
        module._original_forward = module.forward
        module.forward = lambda x: x.bfloat16()
    assert not {"forward", "_original_forward"} & set(vars(module))


def test_a_layer_of_zeros_moves_too():
    module = binarized(config())
    convs = [m for m in module.modules() if isinstance(m, BinaryConv2d)]
    with torch.no_grad():
        convs[0].weight.zero_()
    rates = {id(g["params"][0]): g["lr"] for g in binarize.parameter_groups(module)}
    assert 0.1 < rates[id(convs[0].weight)] / rates[id(convs[1].weight)] < 10


# --- preprocessing


CFG = {"mean": (0.5,), "std": (0.25,), "input_size": (1, 8, 8), "architecture": "net"}


def plain(*values):
    """Settings that say nothing of normalisation."""
    quick = ["training.batch_size=32", "training.augment=none", "training.calibration_images=64", "training.epochs=1"]
    return api.resolve_config("el", None, [*quick, "training.bn_images=0", *values])


def normalised_by(monkeypatch):
    """What `finetune` hands to its loaders from now on: mean and std."""
    seen, room = set(), sys.modules["binarize.training.finetune"]  # the package's attribute is the function

    def look(*args, **options):
        seen.add((options["mean"], options["std"]))
        return make_loader(*args, **options)

    monkeypatch.setattr(room, "make_loader", look)
    return seen


def test_training_normalises_as_the_model_says(teacher, monkeypatch):
    seen = normalised_by(monkeypatch)
    model = copy.deepcopy(teacher)
    model.pretrained_cfg = CFG
    module = binarize.apply(model, torch.zeros(2, *SIZE), config=plain())
    found = module.report.results["preprocessing"]
    assert (found["mean"], found["std"], found["size"]) == ([0.5], [0.25], [8, 8])
    assert found["sources"]["mean"] == found["sources"]["size"] == "pretrained_cfg of net"
    assert "8 x 8, mean 0.5, std 0.25 (pretrained_cfg of net)" in module.report.summary()
    binarize.finetune(module, model, images(), val_data=images(seed=1))
    assert seen == {((0.5,), (0.25,))}
    assert module.report.config["training"]["mean"] == [0.5]
    assert module.report.results["preprocessing"] == found


def test_what_the_user_says_goes_before_the_model(teacher, monkeypatch):
    seen = normalised_by(monkeypatch)
    model = copy.deepcopy(teacher)
    model.pretrained_cfg = CFG
    module = binarize.apply(model, torch.zeros(2, *SIZE), config=plain("training.std=0.5"))
    binarize.finetune(module, model, images())
    assert seen == {((0.5,), (0.5,))}
    seen.clear()
    module = binarize.apply(model, torch.zeros(2, *SIZE), config=plain())
    binarize.finetune(module, model, images(), config=plain("training.mean=0.1"))
    assert seen == {((0.1,), (0.25,))}, "the other as `apply` found it"
    found = module.report.results["preprocessing"]
    assert found["sources"] | {"size": 0} == {
        "mean": "configuration",
        "std": "pretrained_cfg of net",
        "size": 0,
        "crop_pct": "default",
        "interpolation": "default",
    }
    assert any("mean: as configured" in hint for hint in found["hints"])


def test_where_nobody_says_it_training_says_so(teacher):
    module = binarize.apply(teacher, torch.zeros(2, *SIZE), config=plain())
    assert "are ImageNet's" not in module.report.summary(), "nothing was normalised yet"
    binarize.finetune(module, teacher, images())
    assert "mean and std are ImageNet's" in module.report.summary()
    assert module.report.results["preprocessing"]["sources"]["mean"] == "default"


def test_apply_takes_the_size_that_the_model_says():
    model = nn.Sequential(conv_bn(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    assert binarize.apply(model).example_shapes == [[2, 3, 224, 224]]
    model.pretrained_cfg = {"input_size": (3, 40, 48)}
    module = binarize.apply(model)
    assert module.example_shapes == [[2, 3, 40, 48]]
    assert module.report.results["preprocessing"]["sources"]["size"] == "pretrained_cfg"
    given = binarize.apply(model, torch.zeros(2, 3, 32, 32)).report.results["preprocessing"]
    assert (given["size"], given["sources"]["size"]) == ([32, 32], "example inputs")


def test_what_takes_no_images_has_no_preprocessing():
    signal = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3), nn.Flatten(), nn.LazyLinear(3))
    signal(torch.zeros(1, 2, 64))
    signal.pretrained_cfg = {"input_size": (3, 40, 48)}
    module = binarize.apply(signal, torch.zeros(2, 2, 64))
    assert "preprocessing" not in module.report.results and "images:" not in module.report.summary()


def test_later_settings_at_what_earlier_versions_did_are_the_same_run():
    """Checkpoints of versions that had no `crop_pct` go on."""
    every = dataclasses.asdict(plain().training)
    known = what_matters(every)
    assert not {"crop_pct", "interpolation", *HARMLESS_SETTINGS} & known.keys()
    assert what_matters(every | {"crop_pct": 0.875, "interpolation": "bilinear"}) == known
    assert what_matters(every | {"crop_pct": 0.9}) == known | {"crop_pct": 0.9}
