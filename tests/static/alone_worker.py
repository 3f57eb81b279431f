"""A process without the model's code: renders all of `exports.CASES` with an export, in tests/static/test_export.py.

Run: python -m tests.static.alone_worker EXPORT FILE.npz
"""

from __future__ import annotations

import sys

CODE = ("mmdit", "attention", "sums", "layers", "vae.autoencoder", "vae.blocks", "text.clip", "text.t5", "text.load")
FOR_GPUS = ("sd3par.kernels", "triton")


def main() -> None:
    """Writes latents of every case and one picture."""
    for name in (*(f"sd3par.{name}" for name in CODE), *FOR_GPUS):
        sys.modules[name] = None  # type: ignore[assignment]  # an import of it fails
    import numpy as np

    from sd3par.pipeline import SD3Pipeline
    from tests.static.exports import CASES, options, start

    pipe = SD3Pipeline.from_pretrained(sys.argv[1], engine="static", device="cpu")
    found = {name: pipe(**options(name)).images.numpy() for name in CASES}
    found["picture"] = pipe(**(options("one") | dict(output_type="np"))).images
    found["image-to-image"] = pipe(**(options("one") | dict(image=start()))).images.numpy()
    np.savez(sys.argv[2], **found)


if __name__ == "__main__":
    main()
