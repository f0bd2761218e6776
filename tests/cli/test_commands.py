"""What each command does and prints, on a tiny network."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from binarize.bench.float_onnx import float_onnx
from binarize.config import Config
from binarize.loading import load_model
from tests.cli.conftest import Ran, Workshop

Cli = Callable[..., Ran]


def test_convert_without_data_says_that_accuracy_needs_it(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    out = tmp_path / "plain.onnx"
    size = ("--input-size", "1,8,8")
    ran = cli("convert", workshop.model, "--arch", workshop.arch, "--out", out, *size)
    assert ran.code == 0, ran.err
    assert "accuracy needs fine-tuning" in ran.err and "--data" in ran.err
    assert "1 of 2 convs binarized" in ran.out
    assert "kept float: 1 (first conv on the image): stem.0" in ran.out
    assert "packed binary weights" in ran.out and "verified: " in ran.out
    assert f"next: binarize bench {out}" in ran.out
    assert "accuracy" not in ran.out
    assert out.stat().st_size > 0 and (tmp_path / "plain.run" / "report.json").exists()


def test_convert_with_data_reports_both_accuracies(
    cli: Cli, workshop: Workshop, converted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "net.onnx"
    ran = cli("convert", workshop.model, "--out", out, "--json", *workshop.options(epochs=1))
    assert ran.code == 0, ran.err
    document = ran.document
    assert {"command", "out", "run", "next", "report", "warnings"} <= document.keys()
    assert document["out"] == str(out) and document["warnings"] == []
    report = document["report"]
    assert (report["convs"], report["binarized"]) == (2, 1)
    results = report["results"]
    assert 0 <= results["float_top1"] <= 1 and 0 <= results["training"]["val_top1"] <= 1
    assert results["size"]["packed_weights"] > 0 and results["verification"]["nodes"] > 0
    assert results["source"]["notes"] == ["Weights found under 'state_dict'."]
    assert "training (binary) 100%" in ran.err
    human = cli("convert", workshop.model, "--out", converted, *workshop.options())
    assert human.code == 0, "running the same again goes on from the last checkpoint"
    assert "accuracy" in human.out and "float " in human.out and "binary " in human.out
    assert f"next: binarize eval {converted} --data {workshop.data}" in human.out


def test_options_end_up_in_the_configuration(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[surgery]\nkeep = ["stem.*"]\nactivation = "prelu"\n')
    common = ("--arch", workshop.arch, "--input-size", "1,8,8", "--json")
    ran = cli("inspect", workshop.model, *common, "--recipe", "bireal", "--set", "link.pool=max", "--binarize-stem")
    config = ran.document["report"]["config"]
    assert config["recipe"] == "bireal" and config["link"]["kind"] == "identity"
    assert config["link"]["pool"] == "max" and config["surgery"]["binarize_stem"]
    assert ran.document["report"]["binarized"] == 2
    ran = cli("inspect", workshop.model, *common, "--config", tmp_path / "mine.toml", "--keep", "body.0")
    surgery = ran.document["report"]["config"]["surgery"]
    assert (surgery["keep"], surgery["activation"]) == (["stem.*", "body.0"], "prelu")
    assert ran.document["report"]["binarized"] == 0


def test_inspect_shows_every_conv_and_changes_nothing(cli: Cli, workshop: Workshop) -> None:
    before = workshop.model.read_bytes()
    common = ("inspect", workshop.model, "--arch", workshop.arch, "--input-size", "1,8,8")
    ran = cli(*common)
    assert ran.code == 0, ran.err
    rows = [line.split() for line in ran.out.splitlines()]
    assert ["stem.0", "stem", "3x3", "1>8", "5.9%", "288", "B"] in rows
    assert ["body.0", "binary", "3x3", "8>16", "94.1%", "4.61", "kB", "1.15", "kB", "expand", "1:2"] in rows
    assert "Weights found under 'state_dict'." in ran.err
    wide = cli(*common, "--wide").out.splitlines()
    assert len({len(line.rstrip()) for line in wide[:3]}) > 1 and "first conv on the image" in wide[1]
    assert max(len(line) for line in ran.out.splitlines()[:3]) <= 100
    quiet = cli(*common, "--quiet")
    assert (quiet.out, quiet.err) == ("1\n", "")
    assert workshop.model.read_bytes() == before
    assert "would overwrite the model" in cli("export", workshop.model, "--out", workshop.model).err


def test_inspect_as_data_and_as_a_picture(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    common = ("inspect", workshop.model, "--arch", workshop.arch, "--input-size", "1,8,8")
    picture = tmp_path / "tiny.svg"
    document = cli(*common, "--svg", picture, "--json").document
    assert document["svg"] == str(picture)
    stem, body = document["report"]["decisions"]
    assert (stem["packed_bytes"], stem["link_ratio"]) == (None, None)
    assert (body["packed_bytes"], body["link_ratio"], body["weight_bytes"]) == (16 * 9 * 8, 2.0, 16 * 8 * 9 * 4)
    assert picture.read_text().startswith("<svg ") and picture.read_text().count("body.0") >= 2
    nowhere = cli(*common, "--svg", tmp_path / "missing" / "tiny.svg")
    assert nowhere.code == 2 and "missing" in nowhere.err


def test_what_becomes_binary_is_chosen_by_name(cli: Cli, workshop: Workshop) -> None:
    common = ("inspect", workshop.model, "--arch", workshop.arch, "--input-size", "1,8,8")
    assert cli(*common, "--only", "stem", "--binarize-stem", "--quiet").out == "1\n"
    assert cli(*common, "--keep", "rule:3x3", "--strict", "--quiet").out == "0\n"
    unknown = cli(*common, "--keep", "rule:3by3")
    assert unknown.code == 2 and "known: " in unknown.err
    config = cli(*common, "--linear", "all", "--strict", "--json").document["report"]["config"]["surgery"]
    assert (config["linear"], config["strict"]) == ("all", True)


def test_finetune_then_export_then_eval_agree(cli: Cli, workshop: Workshop, finetuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported.onnx"
    ran = cli("export", finetuned, "--arch", workshop.arch, "--out", out, "--json")
    assert ran.code == 0, ran.err
    assert ran.document["report"]["results"]["verification"]["failures"] == []
    assert ran.document["next"] == f"binarize bench {out}"
    common = ("--arch", workshop.arch, "--data", workshop.data, "--json")
    found = {file: cli("eval", file, *common).document for file in (finetuned, out)}
    assert [found[file]["kind"] for file in (finetuned, out)] == ["binary", "onnx"]
    assert found[finetuned]["top1"] == pytest.approx(found[out]["top1"], abs=1 / 30)
    assert all(f["images"] == 30 and f["images_per_second"] > 0 for f in found.values())


@pytest.mark.slow
def test_an_int8_stem_takes_its_ranges_from_the_images(
    cli: Cli, workshop: Workshop, finetuned: Path, tmp_path: Path
) -> None:
    out = tmp_path / "int8.onnx"
    ran = cli(
        "export", finetuned, "--arch", workshop.arch, "--out", out, "--stem", "int8", "--data", workshop.data, "--json"
    )
    assert ran.code == 0, ran.err
    report = ran.document["report"]
    found = report["results"]["int8"]
    assert found["layers"] == ["stem.0", "head"] and found["images"] == found["images_compared"] == 48
    assert found["top1_agreement"] >= 0.9
    assert report["config"]["export"]["stem"] == "int8" and ran.document["warnings"] == []
    accuracy = cli("eval", out, "--data", workshop.data, "--json").document["top1"]
    assert accuracy == pytest.approx(
        cli("eval", finetuned, "--arch", workshop.arch, "--data", workshop.data, "--json").document["top1"], abs=0.1
    )
    blind = cli("export", finetuned, "--arch", workshop.arch, "--out", out, "--stem", "int8", "--json").document
    assert "random inputs" in blind["warnings"][0]
    assert blind["report"]["results"]["int8"]["top1_agreement"] is None
    human = cli("convert", workshop.model, "--out", out, "--stem", "int8", *workshop.options(epochs=1))
    assert human.code == 0, human.err
    assert "int8: stem.0, head" in human.out and "top-1 answer" in human.out


def test_finetune_tells_what_to_do_next(cli: Cli, workshop: Workshop, finetuned: Path) -> None:
    ran = cli("finetune", workshop.model, "--out", finetuned, "--json", *workshop.options())
    document = ran.document
    assert {"out", "run", "next", "report"} <= document.keys()
    assert (
        document["next"] == f"binarize export {finetuned} --arch {workshop.arch} --out {finetuned.with_suffix('.onnx')}"
    )
    assert (Path(document["run"]) / "binary.ckpt").exists()
    assert len(document["report"]["results"]["training"]["history"]) == 2


def test_a_binary_file_cannot_choose_code_to_run(cli: Cli, finetuned: Path, tmp_path: Path) -> None:
    witness, hostile = tmp_path / "witness", tmp_path / "hostile.pt"
    (tmp_path / "evil.py").write_text(f"open({str(witness)!r}, 'w')\n")
    torch.save(torch.load(finetuned, weights_only=True) | {"arch": f"{tmp_path}/evil.py:net"}, hostile)
    ran = cli("export", hostile, "--out", tmp_path / "x.onnx", "--json")
    assert ran.code == 2 and "runs only when you name it" in ran.out and "--arch" in ran.out
    assert not witness.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"state_dict": None},
        {"arch": 7},
        {"results": 3},
        {"example_shapes": [[1 << 20, 1 << 20]]},
        {"example_shapes": [[-1, 1, 8, 8]]},
        {"example_structure": "[1, {}]"},
    ],
    ids=str,
)
def test_a_damaged_binary_file_is_no_bug(
    cli: Cli, workshop: Workshop, finetuned: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    damaged = tmp_path / "damaged.pt"
    torch.save(torch.load(finetuned, weights_only=True) | change, damaged)
    ran = cli("export", damaged, "--arch", workshop.arch, "--out", tmp_path / "x.onnx", "--json")
    assert (ran.code, ran.document["error"]) == (3, "UnsupportedModelError")
    assert "damaged" in ran.document["message"] and ran.document["layer"] == str(damaged)


def test_finetune_can_adapt_the_float_model_first(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    adapt = ("--set", "training.float_epochs=1", "--set", "training.holdout=0.1")
    ran = cli("finetune", workshop.model, "--out", tmp_path / "a.pt", *workshop.options(epochs=1), *adapt)
    assert ran.code == 0, ran.err
    assert "training (float) 100%" in ran.err and "training (binary) 100%" in ran.err
    assert (tmp_path / "a.run" / "float.ckpt").exists()


def test_data_without_a_held_out_split_gets_a_warning(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    options = workshop.options(epochs=1)
    options[options.index("--data") + 1] = str(workshop.data / "train.parquet")
    ran = cli("finetune", workshop.model, "--out", tmp_path / "b.pt", "--json", *options)
    assert "--val" in ran.document["warnings"][0]
    assert "val_top1" not in ran.document["report"]["results"]["training"]
    val = ("--val", workshop.data / "test.parquet")
    ran = cli("finetune", workshop.model, "--out", tmp_path / "c.pt", "--json", *options, *val)
    assert ran.document["warnings"] == []
    assert "val_top1" in ran.document["report"]["results"]["training"]


def test_eval_of_a_float_model_normalises_as_told(cli: Cli, workshop: Workshop) -> None:
    arguments = ("eval", workshop.model, "--arch", workshop.arch, "--data", workshop.data)
    ran = cli(*arguments)
    assert ran.code == 0, ran.err
    assert "top-1" in ran.out and "float" in ran.out and " 30 " in ran.out
    quiet = cli(*arguments, "--set", "training.mean=0.5", "--set", "training.std=0.5", "--quiet")
    assert 0 <= float(quiet.out) <= 1


def test_bench_compares_two_files(cli: Cli, workshop: Workshop, converted: Path, tmp_path: Path) -> None:
    float_file = tmp_path / "float.onnx"
    float_onnx(load_model(workshop.model, workshop.arch).module, float_file, (torch.zeros(2, 1, 8, 8),))
    ran = cli("bench", converted, "--against", float_file, "--runs", "20", "--json")
    assert ran.code == 0, ran.err
    document = ran.document
    assert [c["name"] for c in document["contenders"]] == ["tiny", "float"]
    assert (document["threads"], document["batch"], document["runs"]) == (1, 1, 20)
    assert document["machine"]["cpu"] and document["machine"]["isa"]
    for contender in document["contenders"]:
        times = contender["milliseconds"]
        assert 0 < times["minimum"] <= times["median"] <= times["p90"]
    human = cli("bench", converted, "--against", float_file, "--runs", "20", "--batch", "2")
    assert "median ms" in human.out and "95 % interval" in human.out and "batch 2" in human.out


def test_bench_exports_the_float_model_itself(cli: Cli, workshop: Workshop, converted: Path) -> None:
    ran = cli("bench", converted, "--against", workshop.model, "--arch", workshop.arch, "--runs", "20", "--json")
    assert ran.code == 0, ran.err
    binary, plain = ran.document["contenders"]
    assert binary["name"] != plain["name"] and plain["milliseconds"]["median"] > 0


def test_bench_keeps_files_of_one_name_apart(cli: Cli, workshop: Workshop, converted: Path, tmp_path: Path) -> None:
    shutil.copy(workshop.model, tmp_path / "tiny")
    ran = cli("bench", converted, "--against", tmp_path / "tiny", "--arch", workshop.arch, "--runs", "20", "--json")
    assert ran.code == 0, ran.err
    assert [c["name"] for c in ran.document["contenders"]] == ["tiny", "tiny (2)"]


def test_bench_shows_layers_profile_and_plot(cli: Cli, workshop: Workshop, converted: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    against = ("bench", converted, "--against", workshop.model, "--arch", workshop.arch, "--runs", "20", "--int8")
    ran = cli(*against, "--data", workshop.data, "--layers", "--profile", "--json")
    assert ran.code == 0, ran.err
    document = ran.document
    names = [c["name"] for c in document["contenders"]]
    assert names == ["tiny", "tiny.pt", "tiny.pt int8"]
    assert [layer["layer"] for layer in document["layers"]] == ["stem.0", "body.0", "head", "(everything else)"]
    assert all(set(layer["milliseconds"]) == set(names) for layer in document["layers"])
    spreads = [spread for layer in document["layers"] for spread in layer["milliseconds"].values()]
    assert all(s["runs"] == 20 and 0 <= s["minimum"] <= s["median"] <= s["p90"] for s in spreads)
    assert set(document["profiles"]) == set(names)
    assert all(c["peak_rss_bytes"] > c["base_rss_bytes"] > 0 for c in document["contenders"])
    plot = tmp_path / "tiny.svg"
    human = cli(*against, "--layers", "--profile", "--plot", plot)
    assert human.code == 0, human.err
    assert "by layer" in human.out and "SLOWER than tiny.pt int8 in" in human.out and "ai.binarize" in human.out
    assert plot.stat().st_size > 0
    assert "give the float model with --against" in cli("bench", converted, "--int8").err


def test_bench_refuses_what_it_would_ignore(cli: Cli, workshop: Workshop, converted: Path) -> None:
    ran = cli("bench", converted, "--data", workshop.data)
    assert ran.code == 2 and "--data" in ran.err and "add --int8" in ran.err
    for arguments in ([], ["--against", converted]):
        ran = cli("bench", converted, *arguments, "--arch", workshop.arch)
        assert ran.code == 2 and "--arch" in ran.err and "--against FILE.pt" in ran.err


def test_the_model_is_never_the_output(cli: Cli, workshop: Workshop) -> None:
    before = workshop.model.read_bytes()
    for command in ("convert", "finetune"):
        ran = cli(command, workshop.model, "--out", workshop.model, *workshop.options())
        assert ran.code == 2 and "would overwrite the model" in ran.err
    assert workshop.model.read_bytes() == before
    assert "writes a .pt" in cli("finetune", workshop.model, "--out", "m.onnx", *workshop.options()).err


def test_refused_runs_leave_checkpoints_and_their_configuration(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    assert cli("convert", workshop.model, "--out", out, *workshop.options(epochs=1)).code == 0
    run = tmp_path / "net.run"
    before = {name: (run / name).read_bytes() for name in ("binary.ckpt", "config.toml")}
    options = [str(tmp_path / "typo") if value == str(workshop.data) else value for value in workshop.options(epochs=1)]
    assert cli("convert", workshop.model, "--out", out, "--restart", *options).code == 2
    assert cli("convert", workshop.model, "--out", out, *workshop.options(epochs=1), "--seed", "9").code == 2
    assert {name: (run / name).read_bytes() for name in before} == before


# --- preprocessing


PROCESSOR = {"image_mean": [0.5], "image_std": [0.25], "size": {"height": 8, "width": 8}, "resample": 3}


@pytest.fixture
def hub(workshop: Workshop, tmp_path: Path) -> Path:
    """The network's weights as a folder of a hub has them, with an image processor's settings."""
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file(torch.load(workshop.model, weights_only=True)["state_dict"], folder / "model.safetensors")
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder / "model.safetensors"


def test_what_lies_beside_the_weights_is_how_images_are_seen(
    cli: Cli, workshop: Workshop, hub: Path, tmp_path: Path
) -> None:
    plain = ["--set", "training.batch_size=16", "--set", "training.augment=none", "--epochs", "1"]
    options = ["--arch", workshop.arch, "--data", workshop.data, *plain]
    out, line = tmp_path / "net.onnx", "images: 8 x 8, mean 0.5, std 0.25 (preprocessor_config.json)"
    ran = cli("convert", hub, "--out", out, *options)
    assert ran.code == 0, ran.err
    assert line in ran.out and line in ran.err, "before the work, and in the report"
    assert ran.err.index(line) < ran.err.index("training (binary)") and "ImageNet's" not in ran.out
    config = Config().updated(tomllib.loads((tmp_path / "net.run" / "config.toml").read_text()))
    assert (config.training.mean, config.training.std, config.training.interpolation) == ((0.5,), (0.25,), "bicubic")
    hub.with_name("preprocessor_config.json").unlink()
    ran = cli("eval", out, "--data", workshop.data)
    assert f"images: 8 x 8, mean 0.5, std 0.25 ({out.name})" in ran.err, "the file remembers it"
    same = cli("eval", out, "--data", workshop.data, "--set", "training.mean=0.5", "--set", "training.std=0.25")
    assert "mean 0.5, std 0.25 (configuration)" in same.err and same.out.split()[:-1] == ran.out.split()[:-1]
    module = tmp_path / "tuned.pt"
    given = cli("finetune", hub, "--out", module, *options, "--set", "training.mean=0.1", "--json").document
    found = given["report"]["results"]["preprocessing"]
    assert found["mean"] == [0.1] and found["sources"]["mean"] == "configuration"
    assert found["std"] == pytest.approx([0.229, 0.224, 0.225]) and found["sources"]["std"] == "default"
    assert f"mean 0.1, std 0.229 0.224 0.225 ({module.name})" in cli("eval", module, *options[:4]).err


def test_eval_of_a_float_model_says_how_it_sees_images(cli: Cli, workshop: Workshop, hub: Path) -> None:
    common = ("--arch", workshop.arch, "--data", workshop.data)
    believed = cli("eval", hub, *common)
    assert "mean 0.5, std 0.25 (preprocessor_config.json)" in believed.err
    unknown = cli("eval", workshop.model, *common)
    assert "(default)" in unknown.err and "mean and std are ImageNet's" in unknown.err
    told = ("--set", "training.mean=0.5", "--set", "training.std=0.25")
    assert cli("eval", workshop.model, *common, *told, "--quiet").out == cli("eval", hub, *common, "--quiet").out


def test_inspect_takes_the_size_that_the_file_says(cli: Cli, workshop: Workshop, hub: Path) -> None:
    document = cli("inspect", hub, "--arch", workshop.arch, "--json").document["report"]
    assert document["decisions"][0]["output_size"] == [8, 8]
    assert document["results"]["preprocessing"]["sources"]["size"] == "preprocessor_config.json"
    asked = cli("inspect", hub, "--arch", workshop.arch, "--input-size", "1,16,16")
    assert "images: 16 x 16 (option); mean 0.5" in asked.out


def test_a_binary_file_of_an_earlier_version_is_seen_as_it_was(
    cli: Cli, workshop: Workshop, finetuned: Path, tmp_path: Path
) -> None:
    state = torch.load(finetuned, weights_only=True)
    for key in ("crop_pct", "interpolation"):
        del state["config"]["training"][key]
    del state["results"]["preprocessing"]
    torch.save(state, tmp_path / "old.pt")
    common = ("--arch", workshop.arch, "--data", workshop.data, "--quiet")
    assert cli("eval", tmp_path / "old.pt", *common).out == cli("eval", finetuned, *common).out
    ran = cli("export", tmp_path / "old.pt", "--arch", workshop.arch, "--out", tmp_path / "old.onnx")
    assert ran.code == 0 and "verified: " in ran.out
