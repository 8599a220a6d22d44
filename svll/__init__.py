"""SVLL-ReID: self-supervised vision-language learning for image re-identification."""
