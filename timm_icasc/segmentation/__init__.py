"""Table 2 of the paper: attention as localisation cues for weakly supervised semantic segmentation (SEC)."""
