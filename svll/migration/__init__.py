"""Configurations of CLIP-ReID, SVLL-ReID, TransReID, fast-reid and torchreid, converted to ours."""
