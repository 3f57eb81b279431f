"""A transformer and a VAE alone, as diffusers saves them one by one: prompts come as embeddings, or are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sd3par.errors import ConfigError
from sd3par.pipeline import SD3Pipeline
from tests.ranks import ROOT

STATES = dict(
    prompt_embeds=np.ones((1, 154, 96)), pooled_prompt_embeds=np.ones((1, 80)),
    negative_prompt_embeds=np.zeros((1, 154, 96)), negative_pooled_prompt_embeds=np.zeros((1, 80)),
)  # fmt: skip
FAST = dict(num_inference_steps=2, output_type="np", progress=False)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> SD3Pipeline:
    folder: Path = tmp_path_factory.mktemp("parts")
    for part in ("transformer", "vae"):
        (folder / part).symlink_to(ROOT / "sd3par" / "tiny" / part)
    return SD3Pipeline.from_pretrained(folder)


def test_embeddings_are_drawn(pipe: SD3Pipeline) -> None:
    with_encoders = SD3Pipeline.from_pretrained("tiny")
    drawn = [each(**STATES, **FAST).images for each in (pipe, with_encoders)]  # type: ignore[arg-type]
    np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("given", [{}, {name: STATES[name] for name in ("prompt_embeds", "pooled_prompt_embeds")}])
def test_what_an_encoder_would_have_to_read_is_refused(pipe: SD3Pipeline, given: dict[str, np.ndarray]) -> None:
    words = {} if given else {"prompt": "a red circle"}
    with pytest.raises(ConfigError, match="^prompt: got .*; allowed: prompt_embeds and pooled_prompt_embeds.* no text"):
        pipe(**words, **given, **FAST)  # type: ignore[arg-type]


def test_no_negative_embeddings_without_guidance(pipe: SD3Pipeline) -> None:
    given = {name: STATES[name] for name in ("prompt_embeds", "pooled_prompt_embeds")}
    assert pipe(**given, guidance_scale=1.0, **FAST).images.shape == (1, 128, 128, 3)  # type: ignore[arg-type]
