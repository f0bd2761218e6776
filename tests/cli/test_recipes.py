"""`binarize recipes`."""

from binarize.config import Config, read_config
from binarize.recipes import all_recipes


def test_the_list_has_every_recipe_with_its_numbers(cli):
    ran = cli("recipes", "--json")
    found = {r["name"]: r for r in ran.document["recipes"]}
    assert list(found) == list(all_recipes())
    assert found["el-dagger"]["table1"]["MobileNetV1"] == "61.2" and found["xnor"]["limits"]
    assert all(r["source"] and r["cost"] for r in found.values())


def test_one_recipe_shows_equations_and_stages(cli):
    ran = cli("recipes", "real-to-bin")
    for text in ("sigmoid(W2 relu(W1", "30 attention", "previous", "64.8", "ICLR 2020"):
        assert text in ran.out


def test_a_recipe_as_toml_reads_back(cli, tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(cli("recipes", "ci-net", "--toml").out)
    assert read_config(path, Config()) == all_recipes()["ci-net"].config


def test_toml_of_nothing_is_a_usage_error(cli):
    assert cli("recipes", "--toml", "--json").document["exit_code"] == 2


def test_a_stage_left_out_teaches_none(cli):
    def rows(name):
        return [
            line.split()
            for line in cli("recipes", name).out.splitlines()
            if line.strip().startswith(("tanh", "binary"))
        ]

    assert rows("el-dagger")[0][1:3] == ["0", "(off)"]
    assert rows("el-dagger")[-1][4:6] == ["converted", "float"], "nothing comes before it"
    assert rows("real-to-bin")[0][4:6] == ["converted", "float"]
    assert rows("real-to-bin")[-1][4:6] == ["previous", "previous"]
