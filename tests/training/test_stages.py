"""Stages as data: where they start, whom they learn from, what they match, and what they search."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import binarize
from binarize.config import Config, StageConfig, TrainingConfig, read_config
from binarize.errors import UsageError
from binarize.nn import BinaryConv2d
from binarize.nn.sign import hard_sign
from binarize.training import trainer
from binarize.training.answers import answering, attention_places
from binarize.training.losses import Answer, attention_difference, attention_map, student_objective
from binarize.training.search import GeneticSearch, InteractionSearch, survives
from binarize.training.stages import binary_stages, set_stage_bits
from tests.training.test_finetune import SIZE, binarized, config, images, net

STAGED = """training.stages=[
  {name="tanh", activations="tanh", weights="float", attention=30, weight_rate=0.1},
  {name="activations", weights="float", teacher="previous", attention=30, weight_rate=0.1},
  {name="binary", teacher="previous", cross_entropy=0.5, share=2},
]""".replace("\n", "")


def test_stages_go_through_toml_and_back(tmp_path):
    settled = config(STAGED, "training.stages.binary.rate=0.2")
    assert [s.name for s in settled.training.stages] == ["tanh", "activations", "binary"]
    assert settled.training.stages[2].rate == 0.2
    path = tmp_path / "c.toml"
    path.write_text(settled.to_toml())
    assert read_config(path, Config()) == settled


def test_epochs_scale_all_stages_by_their_shares():
    stages = binary_stages(config(STAGED, "training.epochs=8").training)
    assert [stage.epochs for stage in stages] == [2, 2, 4]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.stages=[]", "not a list of tables"),
        ("training.stages=3", "not a list of tables"),
        ("training.stages=[3]", "not a table"),
        ('training.stages=[{name="a", weights="float"}]', "must have binary"),
        ('training.stages=[{name="a"}, {name="a"}]', "one name"),
        ("training.stages=[{share=0}]", "share"),
        ('training.stages=[{weights="int8"}]', "weights"),
        ("training.stages.first.rate=1", "no training.stages.first"),
        ("training.stages.binary=1", "is a table"),
        ("training.stages.binary.rats=1", "unknown key"),
        ('training.stages=[{name="binary",cross_entropy=0,distillation=0}]', "binary minimises nothing"),
    ],
)
def test_wrong_stages_are_refused(setting, message):
    with pytest.raises(UsageError, match=message):
        Config().with_settings([setting])


def test_attention_maps_against_numpy():
    a, b = torch.randn(3, 5, 4, 4), torch.randn(3, 7, 4, 4)

    def by_definition(x):
        q = (x.numpy() ** 2).mean(1).reshape(3, 16)
        return q / q.max(1, keepdims=True)

    np.testing.assert_allclose(attention_map(a).numpy(), by_definition(a), rtol=1e-5)
    expected = ((by_definition(a) - by_definition(b)) ** 2).mean()
    map_a, map_b = attention_map(a), attention_map(b)
    np.testing.assert_allclose(attention_difference((map_a, map_a), (map_b, map_a)).item(), expected / 2, rtol=1e-5)


def test_the_objective_weighs_its_terms():
    student = Answer(torch.randn(4, 3), (torch.rand(4, 9),))
    teacher = Answer(torch.randn(4, 3), (torch.rand(4, 9),))
    labels = torch.tensor([0, 1, 2, 0])

    def loss(**weights):
        return student_objective(StageConfig(**weights))(student, teacher, labels).item()

    def alone(name):
        weights = dict.fromkeys(("cross_entropy", "distillation", "attention"), 0.0) | {name: 1.0}
        return loss(temperature=2.0, **weights)

    total = loss(cross_entropy=0.5, distillation=3.0, attention=30.0, temperature=2.0)
    parts = 0.5 * alone("cross_entropy") + 3 * alone("distillation") + 30 * alone("attention")
    assert total == pytest.approx(parts, rel=1e-5)
    log_t, log_s = (torch.log_softmax(a.logits / 2, 1) for a in (teacher, student))
    assert alone("distillation") == pytest.approx(float((log_t.exp() * (log_t - log_s)).sum(1).mean() * 4), rel=1e-4)


def test_student_and_teacher_show_the_inputs_of_the_same_convs():
    model = net()
    module = binarized(config(), model).eval()
    places = attention_places(module)
    assert places == ["1.conv1", "1.conv2"]  # the 1x1 projection is not compared
    x = torch.randn(3, *SIZE)
    compiled = torch.compile(module, backend="aot_eager")
    for call in (module, compiled):
        with answering(module, places, call) as ask, answering(model.eval(), places, model) as guide:
            student, teacher = ask(x), guide(x)
        torch.testing.assert_close(student.logits, module(x))
        assert torch.equal(teacher.logits, model(x)) and torch.equal(teacher.maps[0], attention_map(model[0](x)))
        sub = module.get_submodule
        torch.testing.assert_close(student.maps[0], attention_map(sub("0.2_rprelu")(sub("0.1")(sub("0.0")(x)))))
        assert [m.shape for m in student.maps] == [m.shape for m in teacher.maps]
        student.maps[1].square().sum().backward()
        assert sub("1.conv1").weight.grad.abs().sum() > 0
        sub("1.conv1").weight.grad = None
    assert not any(layer._forward_pre_hooks for layer in (*module.modules(), *model.modules()))


class Overwriting(nn.Module):
    """Writes into a map that a conv has read."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        x = x * 1.0
        y = self.conv(x)
        x += 5
        return (x + y).mean((2, 3))


def test_attention_is_to_what_the_conv_read():
    model, x = Overwriting(), torch.randn(2, 3, 4, 4)
    with torch.no_grad(), answering(model, ["conv"], model) as ask:
        assert torch.equal(ask(x).maps[0], attention_map(x))


def test_a_teacher_without_the_convs_is_an_error():
    with pytest.raises(KeyError), answering(nn.Linear(2, 2), ["conv"], nn.Linear(2, 2)):
        pass


def test_each_stage_is_taught_by_the_one_before(monkeypatch):
    model = net()
    settled = config(STAGED, "training.epochs=4")
    module = binarized(settled, model)
    seen, ends, guides = [], [], []

    def watch(event):
        conv = next(m for m in module.modules() if isinstance(m, BinaryConv2d))
        seen.append((conv.activation_bits, conv.weight_bits))

    def listening(layers, places, asked):
        if layers is module:  # a stage starts where the one before has ended
            ends.append(copy.deepcopy(module.state_dict()))
        else:
            guides.append(asked)
        return answering(layers, places, asked)

    monkeypatch.setattr(trainer, "answering", listening)
    binarize.finetune(module, model, images(), progress=watch)
    history = module.report.results["training"]["history"]
    assert [h["stage"] for h in history] == ["tanh", "activations", "binary", "binary"]
    assert list(dict.fromkeys(seen)) == [(32, 32), (1, 32), (1, 1)]
    convs = [m for m in module.modules() if isinstance(m, BinaryConv2d)]
    assert all((c.activation_bits, c.weight_bits) == (1, 1) for c in convs)
    first, *others = guides
    assert not any(isinstance(m, BinaryConv2d) for m in first.modules())
    bits = [{(m.activation_bits, m.weight_bits) for m in g.modules() if isinstance(m, BinaryConv2d)} for g in others]
    assert bits == [{(32, 32)}, {(1, 32)}]
    for guide, end in zip(others, ends[1:], strict=True):
        assert all(torch.equal(value, end[name]) for name, value in guide.state_dict().items())


def test_a_stage_may_start_from_the_converted_net():
    """Two stages of which the second starts anew end where the second alone ends."""
    model = net()
    again = 'training.stages=[{name="first", weights="float", share=1}, {name="binary", start="converted", share=1}]'
    alone = config("training.epochs=1", "training.augment=none")
    both = config(again, "training.epochs=2", "training.augment=none")
    results = []
    for settled in (alone, both):
        module = binarized(settled, model)
        binarize.finetune(module, model, images())
        results.append(module.report.results["training"]["history"][-1])
    assert results[0]["flips"] == pytest.approx(results[1]["flips"], rel=0.3)
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=0.1)


def test_genetic_proposals_keep_the_balance_and_can_be_undone():
    module = binarized(config())
    generator = torch.Generator().manual_seed(0)
    convs = {n: m for n, m in module.named_modules() if isinstance(m, BinaryConv2d)}
    changed = 0
    for _ in range(20):
        before = {n: c.weight.detach().clone() for n, c in convs.items()}
        undo = GeneticSearch().propose(module, generator)
        for name, conv in convs.items():
            after = conv.weight.detach()
            changed += int((hard_sign(after) != hard_sign(before[name])).sum())
            assert torch.equal(hard_sign(after).sum((1, 2, 3)), hard_sign(before[name]).sum((1, 2, 3)))
            torch.testing.assert_close(after.abs(), before[name].abs())
        undo()
        assert all(torch.equal(c.weight, before[n]) for n, c in convs.items())
    assert changed > 0


def test_crossover_takes_bits_of_the_mate():
    generator = torch.Generator().manual_seed(0)
    child, mate = torch.randn(2, 200, generator=generator)
    crossed = GeneticSearch()._cross(child, mate, generator)
    changed = hard_sign(crossed) != hard_sign(child)
    assert torch.equal(hard_sign(crossed)[changed], hard_sign(mate)[changed])
    differ = hard_sign(mate) != hard_sign(child)
    up = int((differ & (mate > 0)).sum())
    assert int(changed.sum()) == 2 * (min(up, int(differ.sum()) - up) // 2) > 40


def test_flips_are_of_the_weights_as_they_are_binarized():
    module = binarized(config("conv.weights=centred"))
    meter = trainer.Meter(module)
    convs = [m for m in module.modules() if isinstance(m, BinaryConv2d)]
    with torch.no_grad():
        for conv in convs:
            if conv.weight.shape[1] > 1:
                conv.weight += 1000.0  # changes the sign of many weights and of no centred one
                conv.weight -= 1000.0 - 0.5
    signs = [conv.binarize_weight.latent(conv.weight.detach()) > 0 for conv in convs]
    assert meter._flips() < 0.05
    with torch.no_grad():
        for conv in convs:
            conv.weight.neg_()
    assert meter._flips() > 0.9 and all(s.any() for s in signs)


def test_interactions_never_chain_and_can_be_undone():
    module = binarized(config("conv.interactions=3"))
    generator = torch.Generator().manual_seed(0)
    layers = [m.interaction for m in module.modules() if isinstance(m, BinaryConv2d)]
    edges = 0
    for step in range(200):
        before = [copy.deepcopy(layer.state_dict()) for layer in layers]
        undo = InteractionSearch().propose(module, generator)
        for layer in layers:
            used = torch.nonzero(layer.sign).flatten()
            edges = max(edges, len(used))
            assert not set(layer.source[used].tolist()) & set(layer.target[used].tolist())
        if step % 2 and undo is not None:
            undo()
            for layer, state in zip(layers, before, strict=True):
                assert all(torch.equal(v, state[k]) for k, v in layer.state_dict().items())
    assert edges == 3


def test_only_what_lowers_the_loss_survives():
    module = binarized(config())
    weight = module.get_submodule("1.conv2").weight
    statistics = {n: b.clone() for n, b in module.named_buffers()}

    class Flip:
        margin = 0.0

        def propose(self, module, generator):
            weight.data.neg_()
            return lambda: weight.data.neg_()

    x = torch.randn(8, *SIZE)
    start = weight.detach().clone()

    def loss(sign):
        module.train()(x)
        return sign * float(weight.sum())

    good = 1.0 if weight.sum() > 0 else -1.0
    generator = torch.Generator()
    assert not survives(Flip(), module, lambda: loss(-good) + 1e3, generator)
    assert torch.equal(weight, start)
    assert survives(Flip(), module, lambda: loss(good) + 1e3, generator)
    assert torch.equal(weight, -start)
    assert all(torch.equal(b, statistics[n]) for n, b in module.named_buffers())


@pytest.mark.parametrize(
    "values",
    [
        ("training.stages.binary.search=genetic",),
        ("conv.interactions=4", "training.stages.binary.search=interactions"),
    ],
    ids=["genetic", "interactions"],
)
def test_a_searching_stage_trains_and_reports_what_it_adopted(values):
    settled = config(*values, "training.stages.binary.search_every=1", "training.epochs=3")
    module, model = binarized(settled), net()
    binarize.finetune(module, model, images())
    history = module.report.results["training"]["history"]
    assert history[-1]["adopted"] >= 0 and history[-1]["adopted"] >= history[0]["adopted"]
    assert history[-1]["loss"] < history[0]["loss"]


def test_proposals_follow_the_seed(monkeypatch):
    def draws(seed):
        drawn = []
        monkeypatch.setattr(
            "binarize.training.trainer.survives", lambda *arguments: drawn.append(arguments[3].initial_seed()) or False
        )
        settled = config("training.stages.binary.search=genetic", "training.stages.binary.search_every=1")
        binarize.finetune(binarized(dataclasses.replace(settled, seed=seed)), net(), images())
        return drawn

    first = draws(0)
    assert len(set(first)) == len(first) > 1
    assert draws(0) == first and not set(draws(1)) & set(first)


@pytest.mark.parametrize("search", [GeneticSearch(), InteractionSearch()], ids=["genetic", "interactions"])
def test_nothing_binary_is_nothing_to_search(search):
    assert search.propose(net(), torch.Generator()) is None


def test_a_searching_recipe_trains_a_net_with_nothing_binary():
    """Its only conv is the first one, which stays as it is."""
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    module = binarized(config("training.stages.binary.search=genetic", "training.stages.binary.search_every=1"), model)
    assert not any(isinstance(m, BinaryConv2d) for m in module.modules())
    binarize.finetune(module, model, images(64))
    assert module.report.results["training"]["history"][-1]["adopted"] == 0


def test_weight_decay_spares_signs():
    module = binarized(config())
    for weights, expected in (("float", 0.01), ("binary", 0.0)):
        plans = (StageConfig(name="a", weights=weights, weight_decay=0.01), StageConfig())
        stage = binary_stages(TrainingConfig(stages=plans))[0]
        decays = {id(p): g["weight_decay"] for g in stage.optimizer(module).param_groups for p in g["params"]}
        assert decays[id(module.get_submodule("1.conv1").weight)] == expected
        assert decays[id(module.get_submodule("4").weight)] == 0.01
        assert decays[id(module.get_submodule("1.bn1").weight)] == 0.0


def test_linear_schedules_end_at_zero():
    stage = binary_stages(TrainingConfig(warmup=0.1, stages=(StageConfig(schedule="linear"),)))[0]
    assert [stage.rate(k, 10) for k in range(10)] == pytest.approx([1 - max(0, k - 1) / 9 for k in range(10)])


def test_bits_follow_the_plan():
    module = binarized(config())
    set_stage_bits(module, StageConfig(activations="tanh", weights="float"))
    assert {(m.activation_bits, m.weight_bits) for m in module.modules() if isinstance(m, BinaryConv2d)} == {(32, 32)}
