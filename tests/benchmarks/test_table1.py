"""The benchmark's machinery on synthetic images: cells are planned, trained, skipped, resumed and shown."""

import dataclasses
import fcntl
import re

import pytest
import torch

from benchmarks.table1 import __main__ as cli
from benchmarks.table1 import plan, render, results, run
from benchmarks.table1.nets import NETS, PAPER_COLUMN
from benchmarks.table1.plan import ABLATIONS, FLOAT, PRESETS, Cell, Wanted
from binarize.errors import UsageError
from binarize.progress import silent
from binarize.training import data
from binarize.training.trainer import TrainingDiverged
from tests.models import conv_bn
from tests.training.test_data import encoded, picture, write_folder, write_parquet
from tests.training.test_finetune import images

SETTINGS = (
    "training.epochs=2",
    "training.float_epochs=2",
    "training.batch_size=32",
    "training.calibration_images=32",
    "training.holdout=0",
)


def colour(count, seed=0):
    """`images` in colour."""
    grey = images(count, seed)
    grey.images = grey.images.expand(-1, 3, -1, -1).contiguous()
    return grey


@pytest.fixture
def bench(tmp_path, monkeypatch):
    def tiny(classes):
        pool = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, classes))
        return torch.nn.Sequential(conv_bn(3, 8), conv_bn(8, 8), *pool)

    monkeypatch.setitem(NETS, "tiny", tiny)
    return run.Bench(colour(128), colour(64, 1), 8, tmp_path, "synthetic")


def cells(*arms, settings=SETTINGS):
    return [Cell("tiny", arm, 0, settings) for arm in arms]


def test_a_cell_trains_exports_and_is_recorded(bench, tmp_path):
    rows = [run.run_cell(cell, bench, silent) for cell in cells(FLOAT, "el")]
    path = tmp_path / "r.csv"
    for row in rows:
        results.append(path, row)
    assert results.read(path) == rows
    assert 25 < float(rows[0].top1) <= 100 and rows[1].float_top1 == rows[0].top1
    assert rows[1].note.startswith("exported") and (rows[1].classes, rows[1].train_images) == (4, 128)
    assert rows[0].key != rows[1].key
    text = render.markdown(rows)
    assert f"| el | {float(rows[1].top1):.1f} (n=1) [" in text
    assert "preset `gpu`, resnet18: float, binarye" in text  # still open


def test_two_first_rows_at_once_have_one_header(bench, tmp_path, monkeypatch):
    (cell,), path = cells(FLOAT), tmp_path / "r.csv"
    row = run.run_cell(cell, bench, silent)
    locked = fcntl.flock

    def late(stream, operation):
        monkeypatch.setattr(fcntl, "flock", locked)
        results.append(path, dataclasses.replace(row, key="other"))  # while the first waits for the file
        locked(stream, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    results.append(path, row)
    assert [r.key for r in results.read(path)] == ["other", row.key]


def test_a_finished_cell_is_skipped_and_a_killed_one_goes_on(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_bench", lambda options, size, limit: bench)
    arguments = ["run", "--data", "x", "--nets", "tiny", "--recipes", "binarye", "--seeds", "1"]
    arguments += ["--results", str(tmp_path / "r.csv"), *(f"--set={s}" for s in SETTINGS)]
    arguments += ["--set=training.checkpoint_minutes=0"]

    def killed(event):
        if event.task.startswith("training (binary)") and event.done >= 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_say", killed)
    assert cli.main(arguments) == 130
    assert [r.recipe for r in results.read(tmp_path / "r.csv")] == [FLOAT]
    seen = []
    monkeypatch.setattr(cli, "_say", seen.append)
    assert cli.main(arguments) == 0
    trained = [e.done for e in seen if e.task.startswith("training")]
    assert min(trained) >= 5  # of 8
    assert [r.recipe for r in results.read(tmp_path / "r.csv")] == [FLOAT, "binarye"]
    assert not list(tmp_path.glob("*.ckpt"))
    seen.clear()
    assert cli.main(arguments) == 0
    assert not seen and "0 to run" in capsys.readouterr().out


def test_divergence_is_a_result(bench, monkeypatch):
    run.run_cell(cells(FLOAT)[0], bench, silent)

    def diverges(*args, **kwargs):
        raise TrainingDiverged("the loss is nan at step 3")

    monkeypatch.setattr(run.binarize, "finetune", diverges)
    row = run.run_cell(cells("el")[0], bench, silent)
    assert row.top1 == "" and "diverged" in row.note
    assert render.summary([row]) == "NC"
    good = dataclasses.replace(row, top1="50.00", float_top1="80.00")
    assert render.summary([row, good, dataclasses.replace(good, top1="52.00")]) == "51.0 ± 1.4 (n=2) [63.7 %], 1 NC"


def test_a_net_that_cannot_be_exported_is_still_a_result(bench, monkeypatch):
    from binarize.errors import UnsupportedModelError

    def fails(*args):
        raise UnsupportedModelError("no form")

    run.run_cell(cells(FLOAT)[0], bench, silent)
    monkeypatch.setattr(run.binarize, "export", fails)
    row = run.run_cell(cells("el")[0], bench, silent)
    assert row.note == "not exported: no form" and row.top1


def test_everything_that_changes_a_result_changes_its_key(bench):
    base = cells("el")[0]
    others = [
        *cells("bireal", "el/no-link"),
        dataclasses.replace(base, seed=1),
        dataclasses.replace(base, net="resnet18"),
        *cells("el", settings=(*SETTINGS, "training.learning_rate=0.001")),
    ]
    keys = {cell.key(bench.facts) for cell in (base, *others)}
    assert len(keys) == 6
    assert base.key(bench.facts | {"train_images": 64}) not in keys
    slower = cells("el", settings=(*SETTINGS, "training.workers=3"))[0]
    assert slower.key(bench.facts) == base.key(bench.facts)
    longer = cells(FLOAT, settings=(*SETTINGS, "training.epochs=9"))[0]
    assert cells(FLOAT)[0].key(bench.facts) == longer.key(bench.facts)


def test_settings_of_a_recipes_own_stages_leave_float_cells_alone(bench):
    settings = (*SETTINGS, "training.stages.tanh.share=75")
    dagger, plain = cells("el-dagger", settings=settings)[0], cells(FLOAT)[0]
    assert dagger.config.training.stages[0].share == 75
    assert dagger.float_cell.config == plain.config
    assert dagger.float_cell.key(bench.facts) == plain.key(bench.facts)


def test_whatever_a_float_nets_training_depends_on_changes_its_key(bench):
    changes = ("mean=[0,0,0]", "std=[1,1,1]", "holdout=0.1", "bn_images=0", "precision=bfloat16", "warmup=0.1")
    found = [cells(FLOAT, settings=(*SETTINGS, f"training.{change}"))[0].key(bench.facts) for change in changes]
    assert len({cells(FLOAT)[0].key(bench.facts), *found}) == 1 + len(changes)


def test_rows_of_other_settings_are_no_seeds_of_the_same(bench):
    common = " ".join(PRESETS["cpu"].settings)
    row = results.Row("k", "resnet20-cifar", FLOAT, 0, "70", "", "", 8, 1, 9, 9, 4, 32, "d", common, "", "", "", "", "")
    seed = dataclasses.replace(row, key="l", settings=f"{common} training.workers=0 training.compile=on")
    other = dataclasses.replace(row, key="m", settings=f"{common} training.learning_rate=0.5")
    assert [len(group) for group in render.conditions([row, seed, other]).values()] == [2, 1]
    assert "training.learning_rate=0.5" in next(iter(render.conditions([other])))
    assert "resnet20-cifar: binarye" in render.markdown([row])
    assert "resnet20-cifar: float" in render.markdown([other])


def test_finished_cells_are_not_run_again_for_float_weights_that_are_gone(bench, tmp_path):
    float_cell, binary = cells(FLOAT, "el")
    path = tmp_path / "r.csv"
    for cell in (float_cell, binary):
        results.append(path, run.run_cell(cell, bench, silent))
    bench.float_file(float_cell).unlink()
    assert cli._missing([float_cell, binary], bench, path) == []
    other = cells("binarye")[0]
    assert cli._missing([float_cell, binary, other], bench, path) == [float_cell, other]
    again = run.run_cell(float_cell, bench, silent)
    results.append(path, again)
    assert len(results.read(path)) == 2


def test_a_file_of_training_images_is_not_validated_on(tmp_path, capsys):
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1")
    assert cli.main(["run", "--data", str(tmp_path / "train-0.parquet")]) == 2
    assert "name --val" in capsys.readouterr().err


def test_a_float_net_that_diverged_is_told_and_not_trained_again(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_bench", lambda options, size, limit: bench)
    path = tmp_path / "r.csv"
    arguments = ["run", "--data", "x", "--nets", "tiny", "--recipes", "el", "binarye", "--seeds", "1"]
    arguments += ["--results", str(path), *(f"--set={s}" for s in SETTINGS), "--set=training.float_learning_rate=1e30"]
    told = "tiny, seed 0: the float net diverged: the loss is nan at step 1 of stage float; binary cells not run: 2\n"
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert out.count(told) == 1 and "] tiny-el-0" not in out and "float_learning_rate" in out
    assert [row.recipe for row in results.read(path)] == [FLOAT]
    monkeypatch.setattr(run, "adapt_float", None)
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == f"3 cells, 0 to run\n{told}"
    assert cli.main([*arguments[:6], "float", *arguments[8:]]) == 0
    assert capsys.readouterr().out == "1 cells, 0 to run\n"


def test_lost_float_weights_are_told(bench):
    with pytest.raises(UsageError, match=r"float\.pt: the weights of the float net are gone"):
        run.run_cell(cells("el")[0], bench, silent)


@pytest.mark.parametrize("option", ["--data", "--val"])
@pytest.mark.parametrize(
    ("names", "guilty", "message"),
    [
        (["nowhere"], "nowhere", "no such file or directory"),
        (["p.parquet", "nowhere.parquet"], "nowhere.parquet", "no such file or directory"),
        (["ab", "bc"], "ab", "a folder among 2 paths"),
        (["p.parquet", "ab"], "ab", "a folder among 2 paths"),
    ],
)
def test_paths_that_are_no_data_set_are_named(tmp_path, capsys, option, names, guilty, message):
    for name in ("ab", "bc"):
        write_folder(tmp_path / name, dict.fromkeys(name, 1))
    write_parquet(tmp_path / "p.parquet", [encoded(picture(0))], [0])
    paths = {"--data": [tmp_path / "ab"], "--val": [tmp_path / "ab"], option: [tmp_path / name for name in names]}
    arguments = [str(word) for name, values in paths.items() for word in (name, *values)]
    assert cli.main(["run", "--work", str(tmp_path / "work"), "--results", str(tmp_path / "r.csv"), *arguments]) == 2
    error = capsys.readouterr().err
    assert f"error: {tmp_path / guilty}: " in error and message in error and f" {option}" in error.partition("hint")[2]


def test_several_parquet_files_are_one_data_set(tmp_path, monkeypatch):
    paths = [write_parquet(tmp_path / f"{n}.parquet", [encoded(picture(n))] * 2, [0, 1]) for n in range(2)]
    assert len(cli._open(paths, "train", "--data")) == 4

    def unreadable(files):
        raise PermissionError(f"{files[1]}: permission denied")

    monkeypatch.setattr(data, "ParquetImages", unreadable)
    with pytest.raises(UsageError, match=r"--val: the data cannot be read: .*1\.parquet: permission denied"):
        cli._open(paths, "val", "--val")


@pytest.mark.parametrize("validation", ["abc", "bc", "a"])
def test_validation_images_of_other_classes_leave_no_row(tmp_path, capsys, validation):
    for name in ("ab", "val"):
        write_folder(tmp_path / name, dict.fromkeys("ab" if name == "ab" else validation, 8), 32)
    arguments = ["run", "--data", str(tmp_path / "ab"), "--val", str(tmp_path / "val"), "--preset", "cpu"]
    arguments += ["--nets", "resnet20-cifar", "--recipes", "el", "--seeds", "1", "--set=training.batch_size=8"]
    arguments += ["--epochs", "1", "--work", str(tmp_path / "work"), "--results", str(tmp_path / "r.csv")]
    assert cli.main(arguments) == 2
    assert f"classes {', '.join(validation)} are not the training data's a, b" in capsys.readouterr().err
    assert not (tmp_path / "r.csv").exists() and not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_name_what_there_is(name):
    planned = list(Wanted(PRESETS[name]).cells())
    assert len(planned) == 2 * len(PRESETS[name].nets) * len(PRESETS[name].arms)
    assert planned[0].arm == FLOAT and planned[0].seed == 0
    for cell in planned[:: len(PRESETS[name].nets)]:
        assert cell.config.surgery.keep == ("rule:projection",)
    assert set(ABLATIONS) >= {"el/no-link", "el-dagger/no-link"}


def test_unknown_names_are_told(capsys):
    assert cli.main(["run", "--data", "/nowhere"]) == 2
    assert "no such file" in capsys.readouterr().err.lower()
    for arm, message in (
        ("elo", "no recipe 'elo'"),
        ("el/no-links", "no change of a recipe 'no-links'"),
        ("xnor,el", "(?s)no recipe 'xnor,el'.*separated by spaces"),
    ):
        with pytest.raises(UsageError, match=message):
            list(Wanted(PRESETS["cpu"], arms=(arm,)).cells())


def test_an_arm_is_a_recipe_with_changes():
    (cell,) = cells("el/identity+box-scale")
    assert cell.changes == ("link.kind=identity", "conv.box_scale=true")
    assert (cell.config.link.kind, cell.config.conv.box_scale) == ("identity", True)
    assert len({cell.config for cell in cells(*plan.product_arms())}) == len(plan.product_arms()) == 18


def test_combined_changes_have_a_table_of_their_own():
    row = results.read(results.FILE)[0]
    arms = {"float": "70", "el": "60", "el/no-link": "30", "el/identity+box-scale": "42", "el/post-bn+replace": "50"}
    text = render.markdown(
        [dataclasses.replace(row, recipe=arm, top1=top1, float_top1="70") for arm, top1 in arms.items()]
    )
    table, _, rest = text.partition("links and parts of `el` combined:")
    assert "| el/no-link | 30.0" in table and "| el/post-bn+replace | 50.0" in table and "identity" not in table
    assert "| as `el` | 30.0 (n=1) [42.9 %] | open | 60.0 (n=1) [85.7 %] |" in rest
    assert "| box-scale | open | 42.0 (n=1) [60.0 %] | open |" in rest


def test_a_float_net_that_trained_longer_stands_beside_the_nets_it_taught():
    row = next(row for row in results.read(results.FILE) if row.recipe == "el" and row.epochs == 8)
    settings = row.settings + " training.float_epochs=30"
    el = dataclasses.replace(row, settings=settings)
    teacher = dataclasses.replace(row, recipe="float", settings=settings, epochs=30.0, float_top1="")
    ((title, group),) = render.conditions([teacher, el]).items()
    assert "8 epochs, training.float_epochs=30" in title and group == [teacher, el]
    assert len(render.conditions([teacher, el, row])) == 2


def test_cells_with_another_teacher_or_one_seed_are_named():
    rows = [row for row in results.read(results.FILE) if row.net == "resnet20-cifar" and row.seed == 0]
    el = next(row for row in rows if row.recipe == "el")
    others = [dataclasses.replace(el, float_top1="50.00"), dataclasses.replace(el, recipe="binarye", seed=1)]
    text = render.markdown([el, *others])
    assert f"- resnet20-cifar, seed 0: float nets of 50.00 and {el.float_top1} %" in text and "seed 1:" not in text
    assert "- preset `cpu`, resnet20-cifar: float, real-to-bin, el-dagger, el/no-link\n" in text
    assert "- preset `cpu`, resnet20-cifar, a second seed: binarye, el\n" in text
    rest = re.findall(r"- beside preset `cpu`, resnet20-cifar, parts of `el` combined(.*): (.*)\n", text)
    assert [what for what, _ in rest] == [""]
    product = {"el", "el/no-link", *(f"el/{changes}" for changes in rest[0][1].split(", "))}
    assert product == set(plan.product_arms())
    other = dataclasses.replace(el, recipe="el/identity+box-scale")
    text = render.markdown([el, other])
    assert "resnet20-cifar, parts of `el` combined, a second seed: identity+box-scale\n" in text
    assert "beside preset `gpu`" not in text  # which has them all
    assert ", a second seed: " not in render.markdown([el, dataclasses.replace(el, seed=1)])


@pytest.mark.parametrize("name", list(NETS))
def test_nets_fit_their_images(name):
    size = 32 if name.endswith("cifar") else 64
    with torch.device("meta"):
        net = NETS[name](7)
        assert net(torch.empty(2, 3, size, size)).shape == (2, 7)
    convs = sum(isinstance(m, torch.nn.Conv2d) for m in net.modules())
    projections = {"resnet18": 3, "resnet34": 3, "resnet26": 4, "resnet50": 4, "resnet26-half-cifar": 4}.get(name, 0)
    layers = {"resnet18": 18, "resnet26": 26, "resnet34": 34, "resnet50": 50, "mobilenetv1": 28}
    layers |= {"resnet20-cifar": 20, "resnet26-half-cifar": 26, "mobilenetv1-half-cifar": 28}
    assert convs - projections + 1 == layers[name]


def test_the_paper_is_beside_it():
    found = [render.paper_number("el-dagger", net) for net in PAPER_COLUMN]
    assert found == ["67.1", "68.9", "61.2", "65.7", "66.5", "65.7", "67.1", "61.2"]
    assert render.paper_number("abcnet/1x1", "resnet18") == "42.7"
    assert render.paper_number(FLOAT, "resnet18") == "69.3" and render.paper_number("el/no-link", "resnet18") == "-"
    assert plan.PRESETS["gpu"].size == 64


@pytest.mark.parametrize("option", ["--seeds", "--limit"])
@pytest.mark.parametrize("count", ["0", "-1", "x", "1.5"])
def test_no_seeds_and_no_images_are_refused(option: str, count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", "--data", "x", f"{option}={count}"])
    assert caught.value.code == 2 and f"{count} is no number of 1 or more" in capsys.readouterr().err
