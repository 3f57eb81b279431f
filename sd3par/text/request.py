"""From a request to the text states of one dp rank's rows."""

from __future__ import annotations

from sd3par.captured import Call, directly
from sd3par.config import GenerationRequest
from sd3par.errors import ConfigError
from sd3par.guidance import join_halves
from sd3par.inputs import ENCODERS, Inputs, spread, texts_read
from sd3par.plan import Rows
from sd3par.text.encode import TextEncoders, TextStates

_HALVES = {"both": (True, False), "uncond": (True,), "cond": (False,), "none": (False,)}  # whether negative


def encode_request(
    text: TextEncoders | None, request: GenerationRequest, inputs: Inputs, rows: Rows, joint_dim: int,
    call: Call = directly, together: Call = directly,
) -> TextStates:  # fmt: skip
    """Returns the states of `rows`, unconditional ones first; all texts of the request go through an encoder together.

    Every rank calls it with the same request and inputs, and its own rows.

    Args:
        text: None where all states come with the request.
        joint_dim: width of the context.
        call, together: run encoders, as `TextEncoders.encode` says.

    Raises:
        ConfigError: a text cannot be read, or there is nothing to read it.
    """
    embeds, mine = inputs.embeds, _HALVES[rows.guidance]
    states: dict[bool, TextStates] = {}
    for negative in mine:
        given = embeds.states(rows, request.num_images_per_prompt, negative) if embeds else None
        if given is not None:
            states[negative] = given
    read = [negative for negative in _HALVES["both" if request.guidance else "none"] if not _comes(negative, inputs)]
    if read and text is None:
        raise ConfigError("prompt", request.prompt, "prompt_embeds: the model has no text encoders")
    if read and text is not None:
        images = inputs.count(request)
        clip_l, clip_g, t5 = (
            [one for negative in read for one in _texts(request, negative, which, images)] for which in ENCODERS
        )
        encoded = text.encode(clip_l, clip_g, t5, request.max_sequence_length, joint_dim, call, together)
        for first, negative in zip(range(0, images * len(read), images), read, strict=True):
            if negative in mine:
                states[negative] = encoded.rows([first + image for image in rows.images])
    return join_halves([states[negative] for negative in mine])


def _comes(negative: bool, inputs: Inputs) -> bool:
    """Returns whether the states of one half come with the request."""
    return inputs.embeds is not None and not (negative and inputs.embeds.negative is None)


def _texts(request: GenerationRequest, negative: bool, which: str, images: int) -> list[str]:
    """Returns the text of each image for one encoder."""
    return spread(texts_read(request, negative, which), Rows(range(images), "none"), request.num_images_per_prompt)
