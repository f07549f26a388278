"""LVLM-aided visual alignment: sampling, verdicts on segments, alignment by fine-tuning."""
