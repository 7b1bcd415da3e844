"""What a recipe may not ask of an adapter, refused before anything is loaded."""

from __future__ import annotations

import pytest

from lorakit.config import recipe
from lorakit.core.errors import ConfigError

WHERE = {"base": "tiny-unet", "dataset": "data", "out": "out"}


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"adapter": {"type": "dorra"}}, "did you mean 'dora'"),
        ({"adapter": {"type": "dora", "init": "pissa"}}, "type dora has no init pissa"),
        ({"adapter": {"type": "lora", "factor": 4}}, "type lora has no factor"),
        ({"adapter": {"type": "oft", "alpha": 8}}, "type oft has no alpha"),
        ({"adapter": {"type": "oft", "conv_rank": 8}}, "type oft has no conv_rank"),
        ({"adapter": {"type": "oft", "rank_pattern": {"to_q": 8}}}, "type oft has no rank_pattern"),
        ({"adapter": {"targets": ["re:("]}}, "not a valid regular expression"),
        ({"adapter": {"rank_pattern": {"to_q": 0}}}, "adapter.rank_pattern.to_q"),
        (
            {"adapter": {"type": "lokr"}, "memory": {"quantize": "nf4"}},
            "lokr needs weights in rows",
        ),
        ({"adapter": {"type": "loha"}, "memory": {"quantize": "nf4"}}, "use int8 or fp8"),
        (
            {"adapter": {"type": "loha"}, "optimizer": {"loraplus_lr_ratio": 4}},
            "needs a matrix B, which adapter.type loha does not have",
        ),
        ({"adapter": {"init": "olora"}, "init_from": "run"}, "both set the initial weights"),
    ],
)
def test_contradictions_are_named(tree, said):
    with pytest.raises(ConfigError) as caught:
        recipe.parse_recipe(WHERE | tree)
    assert said in str(caught.value)


def test_what_is_trained_is_part_of_the_runs_identity():
    plain = recipe.recipe_hash(recipe.parse_recipe(WHERE))
    for change in (
        {"adapter": {"type": "dora"}},
        {"adapter": {"blocks": ["mid_block"]}},
        {"adapter": {"rank_pattern": {"to_q": 8}}},
        {"adapter": {"init": "gaussian"}},
        {"optimizer": {"loraplus_lr_ratio": 2.0}},
    ):
        assert recipe.recipe_hash(recipe.parse_recipe(WHERE | change)) != plain
