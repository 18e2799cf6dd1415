"""What a user can get wrong in a recipe: its file and its keys."""

from __future__ import annotations

import re

import pytest

from tests.helpers.refusals import RUN, SMOKE, Line, Refuses, write


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(
            SMOKE.replace("search:", "serach:"), ("mine.yaml", "'serach'", "did you mean 'search'"), id="unknown key"
        ),
        pytest.param(
            SMOKE.replace("warmup_steps:", "warm_up_steps:"),
            ("'training.warm_up_steps'", "did you mean 'warmup_steps'"),
            id="unknown nested key",
        ),
        pytest.param(SMOKE + "zzz: 1\n", ("'zzz'", "known: name, model"), id="key without neighbor"),
        pytest.param(SMOKE.replace("  steps: 8\n", ""), ("'training.steps'", "add it"), id="missing key"),
        pytest.param(re.sub(r"(?m)^data:.*\n", "", SMOKE), ("'data'", "add it"), id="missing section"),
        pytest.param(
            SMOKE + "name: other\n", ("mine.yaml line", "'name' is written twice", "correct it"), id="key written twice"
        ),
        pytest.param(
            SMOKE.replace("  steps: 8", "  steps: 8\n  steps: 9"), ("'steps'", "twice"), id="nested key written twice"
        ),
        pytest.param("- name: smoke\n", ("mine.yaml", "expected a mapping", "list"), id="a list"),
        pytest.param("smoke", ("mine.yaml", "expected a mapping", "str"), id="a word"),
        pytest.param("", ("mine.yaml", "expected a mapping"), id="empty"),
        pytest.param("name: [smoke\nmodel: }", ("mine.yaml line 2", "not valid YAML", "correct it"), id="not YAML"),
        pytest.param("name: smoke\nmodel:\n\tn_layers: 2\n", ("mine.yaml line 3", "correct it"), id="a tab"),
        pytest.param(bytes(range(256)), ("mine.yaml", "not UTF-8 text", "give a YAML file"), id="binary"),
        pytest.param(b"name: \0\0\0", ("mine.yaml", "not valid YAML", "correct it"), id="NUL bytes"),
        pytest.param(SMOKE.encode("utf-16"), ("mine.yaml", "give a YAML file"), id="UTF-16"),
        pytest.param(
            "!!python/object/apply:os.getcwd []", ("mine.yaml", "not valid YAML", "correct it"), id="Python object"
        ),
        pytest.param("&a {name: *a}", ("mine.yaml", "write it out"), id="anchor inside itself"),
        pytest.param("name: 2001-99-99\n", ("mine.yaml", "month", "correct it"), id="impossible date"),
        pytest.param(f"name: {'9' * 5000}\n", ("mine.yaml", "digits", "correct it"), id="number of 5000 digits"),
        pytest.param(
            re.sub(r"(?m)^model:.*", "model: 7", SMOKE), ("mine.yaml: model", "found 7"), id="section that is a number"
        ),
        pytest.param(SMOKE.replace("name: smoke", "name: a/b"), ("name", "letters, digits"), id="name with a slash"),
    ],
)
def test_run_wrong_recipe_file_is_refused_in_one_line(
    content: str | bytes, words: tuple[str, ...], refuses: Refuses
) -> None:
    refuses(
        lambda at, run: ["run", "--recipe", write(at / "mine.yaml", content), "--space", "smoke", "--out", "new"],
        *words,
    )


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        pytest.param("training.stesp=3", ("'training.stesp'", "did you mean 'steps'"), id="training.stesp=3"),
        pytest.param("training.optimizer=muno", ("adamw", "muon", "muno"), id="training.optimizer=muno"),
        pytest.param("training.muon_learning_rate=0", ("greater than 0, found 0",), id="training.muon_learning_rate=0"),
        pytest.param("search.tolerance=-0.1", ("greater than or equal to 0, found -0.1",), id="search.tolerance=-0.1"),
        pytest.param("training.steps=many", ("valid integer", "'many'"), id="training.steps=many"),
        pytest.param("training.steps=1.5", ("valid integer", "1.5"), id="training.steps=1.5"),
        pytest.param("training.steps=true", ("valid integer", "True"), id="training.steps=true"),
        pytest.param("training.steps=null", ("valid integer", "None"), id="training.steps=null"),
        pytest.param("training.steps=0", ("greater than or equal to 1, found 0",), id="training.steps=0"),
        pytest.param("training.steps='8'", ("valid integer", "'8'"), id="training.steps='8'"),
        pytest.param(
            "training.learning_rate=-1e-3", ("greater than 0, found -0.001",), id="training.learning_rate=-1e-3"
        ),
        pytest.param("training.learning_rate=.nan", ("finite number",), id="training.learning_rate=.nan"),
        pytest.param("training.learning_rate=.inf", ("finite number",), id="training.learning_rate=.inf"),
        pytest.param("training.betas=[0.9]", ("'training.betas.1' is missing", "add it"), id="training.betas=[0.9]"),
        pytest.param("training.betas=[0.9, 1.0]", ("less than 1, found 1.0",), id="training.betas=[0.9, 1.0]"),
        pytest.param("training.warmup_steps=99", ("between 0 and steps (8)",), id="training.warmup_steps=99"),
        pytest.param("training.precision=fp8", ("'bf16' or 'float32'",), id="training.precision=fp8"),
        pytest.param("training.val_sequences=0", ("greater than or equal to 1",), id="training.val_sequences=0"),
        pytest.param("training.ranks=3", ("must divide batch_size 4",), id="training.ranks=3"),
        pytest.param("training.gpus=2", ("less than or equal to 1, found 2",), id="training.gpus=2"),
        pytest.param(
            "training.deepspeed=zero9", ("did you mean 'zero", "trials/deepspeed"), id="training.deepspeed=zero9"
        ),
        pytest.param("training.seq_len=1", ("greater than or equal to 2, found 1",), id="training.seq_len=1"),
        pytest.param("training.seq_len=24", ("data.pairs 4", "raise it to"), id="training.seq_len=24"),
        pytest.param("model.n_layers=0", ("greater than or equal to 1",), id="model.n_layers=0"),
        pytest.param("model.n_heads=3", ("d_model 32 is no multiple",), id="model.n_heads=3"),
        pytest.param("model.n_heads=32", ("even head dimension", "change n_heads"), id="model.n_heads=32"),
        pytest.param("model.n_kv_heads=3", ("must divide n_heads 2",), id="model.n_kv_heads=3"),
        pytest.param("search.sampler=cma", ("'gain', 'gp', 'tpe', 'nsga2' or 'random'",), id="search.sampler=cma"),
        pytest.param("search.rungs=[0.5, 0.25]", ("rising",), id="search.rungs=[0.5, 0.25]"),
        pytest.param("search.confirm_seeds=1", ("greater than or equal to 2",), id="search.confirm_seeds=1"),
        pytest.param("search.reduction=1", ("greater than or equal to 2",), id="search.reduction=1"),
        pytest.param(
            "search.pruner=asha", ("'expected_gain', 'successive_halving' or 'none'",), id="search.pruner=asha"
        ),
        pytest.param("data.source=web", ("'stdlib'", "'web'"), id="data.source=web"),
        pytest.param("data.queries=5", ("must not exceed pairs 4",), id="data.queries=5"),
        pytest.param("data.vocab_size=8", ("raise it to",), id="data.vocab_size=8"),
        pytest.param("data.files=a.txt", ("valid array", "'a.txt'"), id="data.files=a.txt"),
    ],
)
def test_run_wrong_recipe_key_is_refused_by_its_name(assignment: str, words: tuple[str, ...], refuses: Refuses) -> None:
    key = assignment.split("=")[0].split(".")[-1]
    refuses([*RUN, "--set", assignment], key, *words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param(
            [*RUN, "--set", "training.optimizer=muon", "--set", "training.deepspeed=zero2"],
            ("training.deepspeed zero2", "ZeRO stage 0", "training.optimizer=adamw"),
            id="Muon under ZeRO",
        ),
        pytest.param(
            [*RUN, "--set", "search.sampler=gain", "--set", "search.reduction=3"],
            ("search: reduction has no effect with pruner expected_gain", "set pruner=successive_halving"),
            id="a reduction that the pruner does not use",
        ),
        pytest.param(
            [*RUN, "--set", "search.pruner=successive_halving", "--set", "search.rungs=[]"],
            ("pruner successive_halving has no effect without rungs", "set pruner=none"),
            id="a pruner without rungs",
        ),
        pytest.param(
            [*RUN, "--set", "training.seq_len=7"],
            ("the text of 7 tokens", "use a smaller span"),
            id="text shorter than spans",
        ),
        pytest.param(
            [*RUN, "--set", "training.gpus=1", "--set", "training.ranks=64", "--set", "training.batch_size=64"],
            ("needs 64 GPUs", "set training.gpus=0"),
            id="more GPUs than there are",
        ),
        pytest.param(
            [*RUN, "--set", "data.source=hub"], ("data.dataset is missing", "name the hub id"), id="no hub id"
        ),
    ],
)
def test_run_recipe_that_does_not_fit_is_refused_in_one_line(
    line: Line, words: tuple[str, ...], refuses: Refuses
) -> None:
    refuses(line, *words)
