"""Table 2: attention as weak cues for semantic segmentation (SEC)."""
