"""What huggingface_hub raises, said as `repo@revision: cause; remedy`."""
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlparse

import huggingface_hub
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

from ..errors import HubError, check_version, error_chain, one_line
from ..foreign_text import without_secrets
from ..version import HUB_FOR_TRANSFERS

__all__ = ['check_client', 'check_reachable', 'endpoint', 'one_line_errors', 'request_timeout', 'repo_at']

CONNECT_SECONDS = 5

CHECK_NETWORK = 'check the network, a proxy (HTTPS_PROXY) or HF_ENDPOINT'

LOG_IN = "'hf auth login', or a token from https://huggingface.co/settings/tokens in HF_TOKEN"


def repo_at(repo_id: str, revision: str | None) -> str:
    """How every message names a source."""
    return f"{repo_id}@{revision or 'main'}"


def endpoint() -> str:
    """The Hub's address, as it can be printed: without user and password."""
    return without_secrets(constants.ENDPOINT)


def check_client() -> None:
    """Raise VersionError where the Hub's client is older than the one that transfers can rely on.

    Those before 1.0 wait for a silent Hub for ever and say less of what went wrong; 1.0 to 1.32 do not repeat every
    broken transfer.
    """
    check_version(
        'huggingface_hub', huggingface_hub.__version__, HUB_FOR_TRANSFERS, 'exchanging weights with the Hub')


def _connect(host: str, port: int) -> None:
    """Open a connection to any address of a host: a firewall that swallows one of a family swallows all of it."""
    silent, error = set(), None
    for family, *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if family in silent:
            continue
        try:
            return socket.create_connection(address[:2], timeout=CONNECT_SECONDS).close()
        except OSError as e:
            error = e
            if isinstance(e, TimeoutError):
                silent.add(family)
    raise error


def check_reachable(where: str) -> None:
    """Find out in seconds what the Hub's client would take a minute of attempts for.

    Args:
        where: `repo@revision`, for the message.

    Raises:
        HubError: The endpoint does not answer, or HF_HUB_OFFLINE is set.
    """
    if constants.HF_HUB_OFFLINE:
        raise HubError(f'{where}: HF_HUB_OFFLINE is set; unset it to reach the Hub.')
    if any(name.lower() in ('http_proxy', 'https_proxy', 'all_proxy') for name in os.environ):
        return  # reachable through the proxy alone, if at all
    try:
        address = urlparse(constants.ENDPOINT)
        _connect(address.hostname, address.port or (443 if address.scheme == 'https' else 80))
    except (OSError, ValueError) as e:  # ValueError: a port that is no number
        raise HubError(
            f'{where}: {endpoint()} cannot be reached ({without_secrets(str(e))}); {CHECK_NETWORK}.') from e


@contextmanager
def request_timeout(seconds: float) -> Iterator[None]:
    """Inside, give up a connection that brings or takes no byte for so long; the Hub's client would wait for ever."""
    session = get_session()
    before, session.timeout = getattr(session, 'timeout', None), seconds
    try:
        yield
    finally:
        session.timeout = before


def _first(error: BaseException, kinds) -> BaseException | None:
    """The first of these kinds in the chain of causes."""
    return next((link for link in error_chain(error) if isinstance(link, kinds)), None)


def _asked(error: Exception) -> str:
    """The origin that a request went to: the Hub's, or that of the storage it names."""
    try:
        url = urlparse(str(error.request.url))
    except (AttributeError, RuntimeError):  # raised without one
        return endpoint()
    return without_secrets(f'{url.scheme}://{url.netloc}')


def _status(error: HfHubHTTPError) -> str:
    """Cause and remedy of an HTTP status that has no exception of its own."""
    response = error.response
    code, message = response.status_code, response.headers.get('X-Error-Message') or ''
    if code == 401:
        token = 'the access token is not valid (expired, revoked, or of another endpoint)' if get_token() else \
            'this needs an access token'
        return f'{token}; {LOG_IN}. For public repos no token is needed: unset HF_TOKEN, or hf auth logout'
    if code == 403:
        return f"the access token may not do this ({message or 'forbidden'}); use one with write permission " \
               f"to this account's repos: {LOG_IN}"
    if code == 409:
        return f"the Hub reports a conflict{f' ({message})' if message else ''}; run the command again"
    if code == 412:
        return 'somebody has committed to the repo meanwhile, and nothing was overwritten; look at the change, ' \
               'then run the command again'
    if code == 429:
        wait = response.headers.get('Retry-After')
        return f"too many requests; run the command again in {f'{wait} seconds' if wait else 'a few minutes'}"
    if code >= 500:
        return f'the Hub has a fault (HTTP {code}), after repeated attempts where they are safe; run the command ' \
               f'again later, see https://status.huggingface.co'
    return f'HTTP {code} {message or one_line(error)}'


def _refusal(error: BaseException) -> str | None:
    """Cause and remedy of what the Hub itself answered; None of anything else."""
    if _first(error, GatedRepoError):
        return f'access is gated; ask for it on the repo\'s page, and log in ({LOG_IN})'
    missing = _first(error, RepositoryNotFoundError)
    if missing is not None and missing.response.status_code == 401 and get_token():
        return _status(missing)  # the Hub answers 404 to a valid token; its client takes every 401 for a missing repo
    if missing is not None:
        token = "the token in use has no access to it: use the owner's" if get_token() else f'log in: {LOG_IN}'
        return f'no such repo, or a private one; check the name. If it is private, {token}'
    if _first(error, RevisionNotFoundError):
        return 'the repo has no such branch, tag or commit; its page lists them under "Files and versions"'
    http = _first(error, HfHubHTTPError)
    if http is not None and isinstance(http, EntryNotFoundError):
        return f"the repo has no such file ({str(http.response.url).rsplit('/', 1)[-1]})"
    if http is not None and not isinstance(http, BadRequestError):
        return _status(http)
    return None


def _broken_connection(error: BaseException) -> str | None:
    """Cause and remedy of what an HTTP library says before the Hub has answered; None of anything else."""
    module, name = type(error).__module__.split('.')[0], type(error).__name__
    if module not in ('httpx', 'httpx2', 'httpcore', 'httpcore2', 'requests', 'urllib3'):
        return None
    if name in ('ConnectError', 'ConnectTimeout', 'ProxyError'):
        return f'{_asked(error)} cannot be reached ({error}); {CHECK_NETWORK}'
    return f"the connection to {_asked(error)} broke ({name}: {str(error).rstrip('.')}), after repeated attempts " \
           f'where they are safe; run the command again, files that have arrived whole are not transferred twice'


def _cause_and_remedy(error: BaseException) -> str | None:
    if isinstance(error, LocalTokenNotFoundError):
        return f'no access token; {LOG_IN}'
    if isinstance(error, HFValidationError):
        return 'this is no repo name; it is OWNER/NAME, of letters, digits, dots, - and _'
    refusal = _refusal(error)
    if refusal is not None:
        return refusal
    if _first(error, OfflineModeIsEnabled):
        return 'not in the cache, and HF_HUB_OFFLINE is set; unset it to reach the Hub'
    if isinstance(error, LocalEntryNotFoundError):
        return f'the Hub did not answer ({endpoint()}) and the file is not in the cache; check the network'
    if isinstance(error, OSError) and error.errno:
        return f'{error.strerror}: {error.filename or constants.HF_HUB_CACHE}'
    broken = _broken_connection(error)
    if broken is not None:
        return broken
    module = type(error).__module__.split('.')[0]
    # RuntimeError: what hf_xet says of its own transfers.
    if module in ('huggingface_hub', 'hf_xet') or isinstance(error, (ValueError, OSError, RuntimeError)):
        return one_line(error, 400)
    return None


@contextmanager
def one_line_errors(where: str) -> Iterator[None]:
    """Turn what the Hub's client raises inside into a `HubError` of one line.

    Args:
        where: `repo@revision`.
    """
    try:
        yield
    except HubError:
        raise
    except Exception as e:
        # 'Error while uploading', from the thread of the upload, hides what went wrong.
        said = _cause_and_remedy(
            e.__cause__ if isinstance(e, RuntimeError) and e.__cause__ is not None else e)
        if said is None:
            raise
        raise HubError(f"{where}: {without_secrets(said).rstrip('.')}.") from e
