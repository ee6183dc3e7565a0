"""What the paper's border weights and its elastic deformations are worth, on nuclei that were not trained on.

    python benchmarks/ablation.py border --data DSB2018 [--steps 2500] [--threads 1]
    python benchmarks/ablation.py elastic --data DSB2018 [--steps 1000] [--seeds 3] [--images 10] [--threads 1]
        [--deformation grid|field]

DSB2018 is a folder with `images` and `labels` (instance numbers) of the same stems. Of the sorted stems, every tenth
picks the best step, every tenth from the sixth on is scored and nothing else, the others are trained on. Each pair of
variants differs in one number and shares the rest, the seed included:

- border: w_0 = 10 against w_0 = 0, on all training images;
- elastic: displacements (the paper's grid with 10 px, or Simard's field with about 3 px) against none, on a few images
  drawn by the seed; shifts, flips, quarter turns and grey-value variation in both, free rotation and zoom in neither.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import save

from unet_deploy.metrics import Frame, SegCounter, TouchingPairs, count_touching_pairs, number_components
from unet_deploy.training import (
    About,
    AugmentationConfig,
    DataConfig,
    Progress,
    TrainingConfig,
    TrainingData,
    UNet,
    read_training_data,
    train_unet,
)
from unet_deploy.training.validation import predict_whole

BASE = TrainingConfig(depth=3, base_width=16, tile_side=348, validation_every_steps=250, border_weight=10)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("ablation", choices=("border", "elastic"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--deformation", choices=("grid", "field"), default="grid")
    options = parser.parse_args()
    stems = sorted(path.stem for path in (options.data / "images").iterdir())
    picking, scored = stems[0::10], stems[5::10]
    training = [s for s in stems if s not in picking and s not in scored]
    steps = options.steps or {"border": 2500, "elastic": 1000}[options.ablation]
    test = read(options.data, validation=scored, keep=[*scored, *training[:1]])
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        if options.ablation == "border":
            chosen, augmentation = training, AugmentationConfig(zoom_log_std=0.15)
            variants = {f"w_0 = {w:g}": replace(BASE, border_weight=w, augmentation=augmentation) for w in (10.0, 0.0)}
        else:
            few = np.random.default_rng(seed).choice(len(training), options.images, replace=False)
            chosen = [training[i] for i in sorted(few)]
            still = AugmentationConfig(rotation_max_degrees=0, displacement_std_px=0)
            bent = {
                "grid": replace(still, displacement_std_px=10),
                "field": replace(still, deformation="field", field_sigma_px=10, field_alpha_px=180),
            }[options.deformation]
            variants = {
                f"displaced by a {options.deformation}": replace(BASE, augmentation=bent),
                "not displaced": replace(BASE, augmentation=still),
            }
        data = read(options.data, validation=picking, keep=[*chosen, *picking])
        for name, variant in variants.items():
            config = replace(variant, steps=steps, seed=seed, threads=options.threads, device="cpu")
            result = train_unet(data, config, about=About(name=name), on_progress=say)
            row = {"variant": name, "seed": seed, "images": len(data.training), "best step": result.best.step}
            rows.append(row | score(result.model, data, test))
            print(rows[-1], flush=True)
    names = list(dict.fromkeys(row["variant"] for row in rows))
    means = {n: statistics.mean(row["SEG"] for row in rows if row["variant"] == n) for n in names}
    save(
        f"ablation-{options.ablation}",
        {
            "what": __doc__.splitlines()[0],
            "command": f"python benchmarks/ablation.py {options.ablation} --data DSB2018 --steps {steps} "
            f"--seeds {options.seeds} --threads {options.threads} --deformation {options.deformation}",
            "data": f"DSB2018, {len(stems)} images: {len(picking)} pick the step, {len(scored)} are scored",
            "mean SEG": means,
            "runs": rows,
        },
    )


def read(folder: Path, *, validation: list[str], keep: list[str]) -> TrainingData:
    """Read only the images named in `keep`."""
    left_out = tuple(sorted({path.stem for path in (folder / "images").iterdir()} - set(keep)))
    return read_training_data(
        DataConfig(
            images=folder / "images",
            labels=folder / "labels",
            label_kind="instances",
            foreground="nucleus",
            percentiles=(1.0, 99.8),
            validation=tuple(validation),
            exclude=left_out,
        )
    )


def score(model: UNet, data: TrainingData, test: TrainingData) -> dict[str, Any]:
    """Segment the test images, normalised with the training's constants, and score their connected components."""
    test = replace(test, mean=data.mean, std=data.std)
    seg, touching = SegCounter(), TouchingPairs(pairs=0, separated=0)
    for index, annotated in enumerate(test.validation):
        found = number_components(predict_whole(model, annotated, test).argmax(0) >= 1)
        seg.add(Frame(index), annotated.instances, found)
        touching += count_touching_pairs(annotated.instances, found)
    return {
        "SEG": seg.scores().seg,
        "touching pairs": touching.pairs,
        "separated": touching.separated,
    }


def say(progress: Progress) -> None:
    if progress.validation is not None:
        seg = progress.validation.values["seg"]
        print(f"step {progress.step}  loss {progress.loss:.4f}  SEG {seg:.4f}  {progress.elapsed_s:.0f} s", flush=True)


if __name__ == "__main__":
    main()
