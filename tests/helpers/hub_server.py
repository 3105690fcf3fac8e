"""A Hugging Face Hub on loopback, for tests over real HTTP.

It speaks what `huggingface_hub` asks of the Hub, with the Hub's status codes and headers. The endpoint is
`http://127.0.0.1:PORT`; file contents are stored at `http://localhost:PORT`, another origin, as the Hub's are, and a
token that reaches it is an error. Files lie on disk, requests are streamed.

    method  path                                        what it does
    GET     /api/whoami-v2                              name of the token's owner; 401 for an unknown token
    POST    /api/repos/create                           new repo with a first commit; 409 where it exists, 403 elsewhere
    POST    /api/validate-yaml                          the card's metadata: 400 with errors, as text if asked, or
                                                        warnings
    GET     /api/models/ID                              head of main, list of files
    GET     /api/models/ID/revision/REV                 the same of a branch, tag or commit
    GET     /api/models/ID/refs                         branches and tags
    GET     /api/models/ID/tree/REV                     files with size, oid and, of large files, sha256
    POST    /api/models/ID/paths-info/REV               the same of the paths asked for
    POST    /api/models/ID/preupload/REV                'lfs' or 'regular' for each file, and the oid that is there
    POST    /ID.git/info/lfs/objects/batch              where to PUT each object; nothing for one that is there;
                                                        multipart above `multipart_above` bytes
    PUT     /storage/upload/OID (other origin)          one whole object, refused where its sha256 is another
    PUT     /storage/part/OID/N (other origin)          one part of an object; answers with its ETag
    POST    /api/complete/OID                           joins the parts
    POST    /api/lfs-verify                             whether the object is there, with this size
    POST    /api/models/ID/commit/REV                   all files at once; 412 where the parent is not the head
    POST    /api/models/ID/tag/REV                      409 where the tag exists
    HEAD    /ID/resolve/REV/FILE                        307 to the next, with ETag and X-Repo-Commit; a large file: 302
    GET     /ID/resolve/REV/FILE                        to the storage, with X-Linked-Size and X-Linked-ETag besides
    HEAD    /api/resolve-cache/models/ID/COMMIT/FILE    ETag, X-Repo-Commit and size of a small file
    GET     /api/resolve-cache/models/ID/COMMIT/FILE    its contents
    GET     /api/spaces/ID                              of a Space, in `repos` as 'spaces/OWNER/NAME', as of a model
    GET     /api/spaces/ID/revision/REV
    POST    /api/spaces/ID/preupload/REV
    POST    /api/spaces/ID/commit/REV
    HEAD    /spaces/ID/resolve/REV/FILE
    HEAD    /api/resolve-cache/spaces/ID/COMMIT/FILE
    GET     /spaces/ID/resolve/REV/FILE
    GET     /api/resolve-cache/spaces/ID/COMMIT/FILE
    HEAD    /storage/object/OID (other origin)          size of the contents
    GET     /storage/object/OID (other origin)          contents, whole or by Range

Errors carry X-Error-Code and X-Error-Message (RepoNotFound, RevisionNotFound, EntryNotFound, GatedRepo). Private repos
answer strangers with 401 or, with a token, 404. On demand (`Hub.fail`): any status with any headers, a dropped
connection, a body cut short, a flipped byte, a stall.
"""
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path

from helpers.hub_endpoints import LARGE, Handler, git_oid


@dataclass
class Repo:
    private: bool = False
    gated: bool = False
    owner: str = 'me'
    commits: list[dict] = field(default_factory=list)  # {'oid', 'files': {path: {'oid', 'size', 'lfs'}}, 'message'}
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> dict:
        return self.commits[-1]

    def at(self, revision: str) -> dict | None:
        oid = self.head['oid'] if revision == 'main' else self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit['oid'] == oid), None)


@dataclass
class Fault:
    method: str
    path: str  # regular expression, searched in the path
    action: str  # 'status', 'drop', 'truncate', 'flip', 'hold', or 'pass', for `before` alone
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    times: int | None = 1  # None: always
    before: Callable[[], None] | None = None


class Hub:
    """The server and everything it stores; a context manager."""

    def __init__(self, folder: Path, multipart_above: int = 1 << 60, part_size: int = 64 << 20):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.multipart_above, self.part_size = multipart_above, part_size
        self.repos: dict[str, Repo] = {}
        self.tokens = {'hf_owner': 'me', 'hf_stranger': 'stranger'}
        self.requests: list[str] = []  # 'METHOD path', in order of arrival
        self.faults: list[Fault] = []
        self.released, self.reached = threading.Event(), threading.Event()
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), type('BoundHandler', (Handler,), {'hub': self}))
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.endpoint, self.storage = f'http://127.0.0.1:{self.port}', f'http://localhost:{self.port}'

    def __enter__(self) -> 'Hub':
        threading.Thread(target=self.server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def fail(self, method: str, path: str, action: str = 'status', **kwargs) -> None:
        """Let the next matching request (or `times`, None for all) go wrong.

        'hold' sets `reached` (for a PUT, when half of its body has come in), and waits for `released`.
        """
        self.faults.append(Fault(method, path, action, **kwargs))

    def object(self, oid: str) -> Path:
        return self.folder / oid

    def create(self, repo_id: str, files: dict[str, bytes] | None = None, **kwargs) -> Repo:
        """A repo as another client would have left it."""
        repo = self.repos[repo_id] = Repo(**kwargs)
        self.commit(repo, {'.gitattributes': b'*.safetensors filter=lfs\n'}, 'initial commit')
        if files:
            self.commit(repo, files, 'files')
        return repo

    def commit(self, repo: Repo, files: dict[str, bytes], message: str = 'x') -> str:
        entries = {}
        for path, content in files.items():
            lfs = path.endswith(LARGE)
            oid = hashlib.sha256(content).hexdigest() if lfs else git_oid(content)
            self.object(oid).write_bytes(content)
            entries[path] = {'oid': oid, 'size': len(content), 'lfs': lfs}
        return self._add_commit(repo, entries, message)

    def _add_commit(self, repo: Repo, entries: dict[str, dict], message: str) -> str:
        files = {**(repo.head['files'] if repo.commits else {}), **entries}
        text = json.dumps([len(repo.commits), message, files], sort_keys=True)
        repo.commits.append({'oid': hashlib.sha1(text.encode()).hexdigest(), 'files': files, 'message': message})
        return repo.head['oid']

    def read(self, repo_id: str, path: str, revision: str = 'main') -> bytes:
        return self.object(self.repos[repo_id].at(revision)['files'][path]['oid']).read_bytes()
