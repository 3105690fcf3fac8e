"""What a user calls a model on the Hub."""
import pytest

from timm_icasc.hub.download import split_source


@pytest.mark.parametrize('source, parts', [
    ('me/net', ('me/net', None)), ('hf-hub:me/net', ('me/net', None)), ('hf_hub:me/net@v1', ('me/net', 'v1')),
    ('me/net@', ('me/net', None)),
])
def test_repository_and_revision(source, parts):
    assert split_source(source) == parts
