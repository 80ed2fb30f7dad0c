"""``.pt2`` archives: what ``torch.export.save`` wrote, read without running anything that a file says."""
