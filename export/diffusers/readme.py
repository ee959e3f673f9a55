"""The model card of a folder of diffusers: Hugging Face's template, with what the card knows."""

import json

from fewstep.card import Card


def model_card(card: Card, name: str) -> str:
    """README.md of the student `name`."""
    side, gray, counts = card.network["resolution"], card.network["channels"] == 1, sorted(card.levels)
    classes = ", ".join(f"{at} {text}" for at, text in enumerate(card.class_names)) or "none"
    metadata = {
        "license": "other",
        "license_name": "that-of-the-training-images",
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["diffusion", "few-step", "fewstep"],
    }
    yaml = "\n".join(f"{key}: {json.dumps(value)}" for key, value in metadata.items())  # JSON is YAML
    call = f"pipe({'class_labels=[0], ' if card.class_names else ''}seeds=[7], num_inference_steps={counts[-1]})"
    return f"""---
{yaml}
---

# Model Card for {name}

A student for {counts[0]} to {counts[-1]} network calls an image: {side}x{side} {"gray" if gray else "RGB"} images like
those of {card.dataset.name}, each one given by a seed.

## Model Details

- **Model type:** student of a diffusion model (DPDM), a U-Net inside EDM's preconditioning
- **Classes:** {classes}
- **License:** to be stated by the publisher of these weights. Training images: {card.dataset.licence}

## How to Get Started with the Model

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(DIR, custom_pipeline=DIR, trust_remote_code=True)
image = {call}.images[0]
```

## Training Details

{card.dataset.images:,} images of {card.dataset.name}. `fewstep.json` has the noise levels and how it was trained;
`fewstep trainer import DIR --out OUT` makes a checkpoint of fewstep of this folder.
"""
