"""The endpoints of the loopback Hub: see hub_server for what each of them does."""
import base64
import hashlib
import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import yaml

CHUNK = 1 << 20
LARGE = ('.safetensors', '.bin', '.pt', '.pth', '.png')  # kept as LFS objects


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


class _Reply(Exception):
    def __init__(self, status: int, body: object = None, headers: dict[str, str] | None = None):
        self.status, self.body, self.headers = status, body, headers or {}


def _error(status: int, code: str = '', message: str = '') -> _Reply:
    return _Reply(status, {'error': message or code}, {'X-Error-Code': code, 'X-Error-Message': message or code})


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    hub: 'hub_server.Hub'  # noqa: F821  bound by the Hub, in a subclass

    def log_message(self, *_) -> None:
        pass

    # -- the way of a request ---------------------------------------------------------------------------------------

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.left = int(self.headers.get('Content-Length') or 0)
        with self.hub.lock:
            self.hub.requests.append(f'{self.command} {path}')
            self.fault = next(
                (f for f in self.hub.faults if f.method == self.command and re.search(f.path, path)), None)
            if self.fault is not None and self.fault.times is not None:
                self.fault.times -= 1
                if not self.fault.times:
                    self.hub.faults.remove(self.fault)
        try:
            if self.fault is not None:
                if self.fault.before:
                    self.fault.before()
                if self.fault.action == 'status':
                    self._drain()
                    raise _Reply(self.fault.status, {'error': 'on demand'}, self.fault.headers)
                if self.fault.action == 'hold' and self.command != 'PUT':
                    self.hub.reached.set()
                    self.hub.released.wait(60)
                if self.fault.action == 'drop':
                    self._read(self.left // 2)
                    self.close_connection = True
                    self.connection.shutdown(2)
                    return
            for method, pattern, handler in ROUTES:
                match = re.fullmatch(pattern, path)
                if method == self.command and match:
                    stored_elsewhere = self.headers.get('Host', '').startswith('localhost')
                    assert stored_elsewhere == path.startswith('/storage/'), f'{path} asked of the wrong origin'
                    if stored_elsewhere and self.headers.get('Authorization'):
                        raise _error(400, '', 'a token was sent to the storage')
                    handler(self, **match.groupdict())
                    return
            raise _error(404, '', f'no such endpoint: {self.command} {path}')
        except _Reply as reply:
            self._drain()
            self._send(reply.status, reply.body, reply.headers)
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _read(self, count: int | None = None) -> bytes:
        data = self.rfile.read(self.left if count is None else min(count, self.left))
        self.left -= len(data)
        return data

    def _drain(self) -> None:
        while self.left and self._read(CHUNK):
            pass

    def _json(self) -> dict:
        return json.loads(self._read())

    def _send(self, status: int, body: object = None, headers: dict[str, str] | None = None) -> None:
        data = b'' if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(data)

    # -- who may do what --------------------------------------------------------------------------------------------

    def _user(self, necessary: bool = False) -> str | None:
        header = self.headers.get('Authorization')
        if header is None:
            if necessary:
                raise _error(401, '', 'Invalid username or password.')
            return None
        user = self.hub.tokens.get(header.removeprefix('Bearer '))
        if user is None:
            raise _error(401, '', 'Invalid credentials in Authorization header')
        return user

    def _repo(self, repo_id: str, write: bool = False) -> 'hub_server.Repo':  # noqa: F821
        user, repo = self._user(), self.hub.repos.get(repo_id)
        if repo is None or repo.private and user != repo.owner:
            raise _error(404 if user else 401, 'RepoNotFound', 'Repository not found')
        if repo.gated and user != repo.owner and '/resolve/' in self.path:
            raise _error(403 if user else 401, 'GatedRepo', f'Access to model {repo_id} is restricted.')
        if write and user != repo.owner:
            raise _error(403 if user else 401, '', "You don't have the rights to write to this repository.")
        return repo

    def _commit(self, repo, revision: str) -> dict:
        commit = repo.at(revision)
        if commit is None:
            raise _error(404, 'RevisionNotFound', f'Invalid rev id: {revision}')
        return commit

    # -- endpoints --------------------------------------------------------------------------------------------------

    def whoami(self) -> None:
        self._send(200, {'type': 'user', 'name': self._user(necessary=True), 'orgs': [], 'auth': {}})

    def create_repo(self) -> None:
        user, asked = self._user(necessary=True), self._json()
        owner = asked.get('organization') or user
        repo_id = f"{'spaces/' * (asked.get('type') == 'space')}{owner}/{asked['name']}"
        with self.hub.lock:
            if repo_id in self.hub.repos:
                raise _Reply(409, {
                    'error': 'You already created this model repo', 'url': f'{self.hub.endpoint}/{repo_id}'})
            if owner != user:
                raise _error(403, '', "You don't have the rights to create a model under this namespace")
            if asked.get('type') == 'space' and not asked.get('sdk'):
                raise _error(400, '', 'sdk is required for Spaces')
            private = asked.get('visibility') == 'private' or bool(asked.get('private'))
            self.hub.create(repo_id, private=private, owner=user)
        self._send(200, {'url': f'{self.hub.endpoint}/{repo_id}', 'name': repo_id})

    def validate_yaml(self) -> None:
        match = re.match(r'---\n(.*?)\n---\n', self._json()['content'], re.S)
        errors, warnings = [], []
        try:
            data = yaml.safe_load(match.group(1)) if match else None
        except yaml.YAMLError as e:
            data, errors = None, [{'message': str(e)}]
        if data is None:
            warnings = [{'message': 'empty or missing yaml metadata in repo card'}]
        else:
            if 'license' in data and not re.fullmatch(r'[a-z0-9.-]+', str(data['license'])):
                errors.append({'message': '"license" must be one of the license identifiers'})
            for key in ('tags', 'datasets', 'metrics'):
                if key in data and not all(isinstance(v, str) for v in data[key]):
                    errors.append({'message': f'"{key}" must be a list of strings'})
            for entry in data.get('model-index', []):
                for result in entry.get('results', []):
                    if not {'task', 'dataset', 'metrics'} <= set(result) or 'type' not in result['dataset']:
                        errors.append({'message': '"model-index[0].results[0].dataset.type" is required'})
        if errors:
            if self.headers.get('Accept') == 'text/plain':
                raise _Reply(400, '\n'.join(error['message'] for error in errors).encode())
            raise _Reply(400, {'errors': errors, 'warnings': warnings})
        self._send(200, {'errors': [], 'warnings': warnings})

    def info(self, repo_id: str, revision: str = 'main') -> None:
        repo = self._repo(repo_id)
        commit = self._commit(repo, revision)
        siblings = [{'rfilename': path} for path in commit['files']]
        if 'blobs=' in self.path:
            for sibling, entry in zip(siblings, commit['files'].values(), strict=True):
                sibling.update(size=entry['size'], blobId=entry['oid'][:40])
                if entry['lfs']:
                    sibling['lfs'] = {'sha256': entry['oid'], 'size': entry['size'], 'pointerSize': 134}
        self._send(200, {
            '_id': '1', 'id': repo_id, 'modelId': repo_id, 'sha': commit['oid'], 'private': repo.private,
            'siblings': siblings, 'tags': [], 'downloads': 0})

    def refs(self, repo_id: str) -> None:
        repo = self._repo(repo_id)
        tags = [{'name': n, 'ref': f'refs/tags/{n}', 'targetCommit': oid} for n, oid in repo.tags.items()]
        head = {'name': 'main', 'ref': 'refs/heads/main', 'targetCommit': repo.head['oid']}
        self._send(200, {'branches': [head], 'tags': tags, 'converts': []})

    def _entries(self, commit: dict, paths=None) -> list:
        out = []
        for path, entry in commit['files'].items():
            if paths is None or path in paths:
                item = {'type': 'file', 'path': path, 'size': entry['size'], 'oid': entry['oid'][:40]}
                if entry['lfs']:
                    item['lfs'] = {'oid': entry['oid'], 'size': entry['size'], 'pointerSize': 134}
                out.append(item)
        return out

    def tree(self, repo_id: str, revision: str) -> None:
        self._send(200, self._entries(self._commit(self._repo(repo_id), revision)))

    def paths_info(self, repo_id: str, revision: str) -> None:
        commit = self._commit(self._repo(repo_id), revision)
        asked = self._read().decode()
        paths = json.loads(asked)['paths'] if asked.startswith('{') else [
            unquote(v.replace('+', ' ')) for k, v in (p.split('=', 1) for p in asked.split('&')) if k == 'paths']
        self._send(200, self._entries(commit, paths))

    def preupload(self, repo_id: str, revision: str) -> None:
        commit = self._commit(self._repo(repo_id, write=True), revision)
        self._send(200, {'files': [
            {'path': f['path'], 'shouldIgnore': False, 'uploadMode': 'lfs' if f['path'].endswith(LARGE) else 'regular',
             'oid': commit['files'].get(f['path'], {}).get('oid')} for f in self._json()['files']]})

    def batch(self, repo_id: str) -> None:
        self._repo(repo_id, write=True)
        objects = []
        for asked in self._json()['objects']:
            oid, size = asked['oid'], asked['size']
            entry = {'oid': oid, 'size': size}
            if not self.hub.object(oid).exists():
                verify = {'href': f'{self.hub.endpoint}/api/lfs-verify', 'header': {}}
                if size > self.hub.multipart_above:
                    parts = -(-size // self.hub.part_size)
                    header = {'chunk_size': str(self.hub.part_size), **{
                        str(n): f'{self.hub.storage}/storage/part/{oid}/{n}' for n in range(1, parts + 1)}}
                    upload = {'href': f'{self.hub.endpoint}/api/complete/{oid}', 'header': header}
                else:
                    upload = {'href': f'{self.hub.storage}/storage/upload/{oid}', 'header': {}}
                entry['actions'] = {'upload': upload, 'verify': verify}
            objects.append(entry)
        self._send(200, {'transfer': 'basic', 'objects': objects})

    def _receive(self, target: Path) -> str:
        digest, part = hashlib.sha256(), target.with_suffix(f'.{threading.get_ident()}.part')
        half = self.left // 2
        with open(part, 'wb') as file:
            while self.left:
                if self.fault is not None and self.fault.action == 'hold' and self.left <= half:
                    self.hub.reached.set()
                    self.hub.released.wait(60)
                    self.fault = None
                data = self._read(CHUNK)
                if not data:
                    part.unlink()
                    raise ConnectionError('the client went away')
                digest.update(data)
                file.write(data)
        part.rename(target)
        return digest.hexdigest()

    def upload(self, oid: str) -> None:
        target = self.hub.object(oid).with_suffix('.new')
        if self._receive(target) != oid:
            target.unlink()
            raise _error(400, '', 'the sha256 does not match')
        target.rename(self.hub.object(oid))
        self._send(200)

    def upload_part(self, oid: str, number: str) -> None:
        etag = self._receive(self.hub.folder / f'{oid}-{number}')
        self._send(200, headers={'ETag': f'"{etag}"'})

    def complete(self, oid: str) -> None:
        joined, digest = self.hub.object(oid).with_suffix('.new'), hashlib.sha256()
        with open(joined, 'wb') as out:
            for part in self._json()['parts']:
                path = self.hub.folder / f"{oid}-{part['partNumber']}"
                with open(path, 'rb') as file:
                    while data := file.read(CHUNK):
                        digest.update(data)
                        out.write(data)
                path.unlink()
        if digest.hexdigest() != oid:
            raise _error(400, '', 'the sha256 does not match')
        joined.rename(self.hub.object(oid))
        self._send(200, {'success': True})

    def verify(self) -> None:
        asked = self._json()
        path = self.hub.object(asked['oid'])
        if not path.exists() or path.stat().st_size != asked['size']:
            raise _error(404, '', 'object not found')
        self._send(200, {})

    def make_commit(self, repo_id: str, revision: str) -> None:
        repo = self._repo(repo_id, write=True)
        lines = [json.loads(line) for line in self._read().splitlines()]
        header = next(line['value'] for line in lines if line['key'] == 'header')
        with self.hub.lock:
            parent = header.get('parentCommit')
            if parent is not None and parent != repo.head['oid']:
                raise _error(412, '', 'A commit has happened since. Please refresh and try again.')
            entries = {}
            for line in lines:
                value = line['value']
                if line['key'] == 'file':
                    content = base64.b64decode(value['content'])
                    entries[value['path']] = {'oid': git_oid(content), 'size': len(content), 'lfs': False}
                    self.hub.object(git_oid(content)).write_bytes(content)
                elif line['key'] == 'lfsFile':
                    stored = self.hub.object(value['oid'])
                    if not stored.exists():
                        raise _error(400, '', f"LFS object {value['oid']} was not uploaded")
                    entries[value['path']] = {'oid': value['oid'], 'size': stored.stat().st_size, 'lfs': True}
                elif line['key'] == 'deletedFile':
                    repo.head['files'] = {k: v for k, v in repo.head['files'].items() if k != value['path']}
            oid = self.hub._add_commit(repo, entries, header['summary'])
        self._send(200, {'success': True, 'commitOid': oid, 'commitUrl': f'{self.hub.endpoint}/{repo_id}/commit/{oid}'})

    def tag(self, repo_id: str, revision: str) -> None:
        repo, asked = self._repo(repo_id, write=True), self._json()
        commit = self._commit(repo, revision)
        if asked['tag'] in repo.tags:
            raise _error(409, '', f"Tag reference exists already: {asked['tag']}")
        repo.tags[asked['tag']] = commit['oid']
        self._send(200, {'success': True})

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        commit = self._commit(self._repo(repo_id), revision)
        entry, headers = commit['files'].get(path), {'X-Repo-Commit': commit['oid']}
        if entry is None:
            raise _Reply(404, {'error': 'Entry not found'}, {
                **headers, 'X-Error-Code': 'EntryNotFound', 'X-Error-Message': 'Entry not found'})
        headers['ETag'] = f"\"{entry['oid']}\""
        if entry['lfs']:
            headers.update({
                'X-Linked-Size': str(entry['size']), 'X-Linked-ETag': headers['ETag'],
                'Location': f"{self.hub.storage}/storage/object/{entry['oid']}"})
            self._send(302, None, headers)
        else:
            kind = '' if repo_id.startswith('spaces/') else 'models/'
            location = f"/api/resolve-cache/{kind}{repo_id}/{commit['oid']}/{quote(path)}"
            self._send(307, None, {**headers, 'Location': location})

    def resolve_cache(self, repo_id: str, revision: str, path: str) -> None:
        entry = self._commit(self._repo(repo_id), revision)['files'][path]
        self._stream(self.hub.object(entry['oid']), {'ETag': f"\"{entry['oid']}\"", 'X-Repo-Commit': revision})

    def download(self, oid: str) -> None:
        self._stream(self.hub.object(oid), {'ETag': f'"{oid}"'})

    def _stream(self, path: Path, headers: dict[str, str]) -> None:
        size, start = path.stat().st_size, 0
        asked = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range') or '')
        if asked:
            start = int(asked.group(1))
            headers['Content-Range'] = f'bytes {start}-{size - 1}/{size}'
        self.send_response(206 if asked else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header('Content-Length', str(size - start))
        self.end_headers()
        if self.command == 'HEAD':
            return
        action = self.fault.action if self.fault is not None else None
        with open(path, 'rb') as file:
            file.seek(start)
            if action == 'truncate':
                self.wfile.write(file.read((size - start) // 2))
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)
            elif action == 'flip':
                data = bytearray(file.read())
                data[-1] ^= 1
                self.wfile.write(data)
            else:
                shutil.copyfileobj(file, self.wfile, CHUNK)


_ID = r'(?P<repo_id>[\w.-]+/[\w.-]+)'
_SPACE = r'(?P<repo_id>spaces/[\w.-]+/[\w.-]+)'
_REV = r'(?P<revision>[^/]+)'
ROUTES = [
    ('GET', '/api/whoami-v2', Handler.whoami),
    ('POST', '/api/repos/create', Handler.create_repo),
    ('POST', '/api/validate-yaml', Handler.validate_yaml),
    ('GET', f'/api/models/{_ID}', Handler.info),
    ('GET', f'/api/models/{_ID}/revision/{_REV}', Handler.info),
    ('GET', f'/api/models/{_ID}/refs', Handler.refs),
    ('GET', f'/api/models/{_ID}/tree/{_REV}', Handler.tree),
    ('POST', f'/api/models/{_ID}/paths-info/{_REV}', Handler.paths_info),
    ('POST', f'/api/models/{_ID}/preupload/{_REV}', Handler.preupload),
    ('POST', f'/{_ID}.git/info/lfs/objects/batch', Handler.batch),
    ('PUT', '/storage/upload/(?P<oid>[0-9a-f]{64})', Handler.upload),
    ('PUT', r'/storage/part/(?P<oid>[0-9a-f]{64})/(?P<number>\d+)', Handler.upload_part),
    ('POST', '/api/complete/(?P<oid>[0-9a-f]{64})', Handler.complete),
    ('POST', '/api/lfs-verify', Handler.verify),
    ('POST', f'/api/models/{_ID}/commit/{_REV}', Handler.make_commit),
    ('POST', f'/api/models/{_ID}/tag/{_REV}', Handler.tag),
    ('HEAD', f'/{_ID}/resolve/{_REV}/(?P<path>.+)', Handler.resolve),
    ('GET', f'/{_ID}/resolve/{_REV}/(?P<path>.+)', Handler.resolve),
    ('HEAD', f'/api/resolve-cache/models/{_ID}/{_REV}/(?P<path>.+)', Handler.resolve_cache),
    ('GET', f'/api/resolve-cache/models/{_ID}/{_REV}/(?P<path>.+)', Handler.resolve_cache),
    ('GET', f'/api/{_SPACE}', Handler.info),
    ('GET', f'/api/{_SPACE}/revision/{_REV}', Handler.info),
    ('POST', f'/api/{_SPACE}/preupload/{_REV}', Handler.preupload),
    ('POST', f'/api/{_SPACE}/commit/{_REV}', Handler.make_commit),
    ('HEAD', f'/{_SPACE}/resolve/{_REV}/(?P<path>.+)', Handler.resolve),
    ('HEAD', f'/api/resolve-cache/{_SPACE}/{_REV}/(?P<path>.+)', Handler.resolve_cache),
    ('GET', f'/{_SPACE}/resolve/{_REV}/(?P<path>.+)', Handler.resolve),
    ('GET', f'/api/resolve-cache/{_SPACE}/{_REV}/(?P<path>.+)', Handler.resolve_cache),
    ('GET', '/storage/object/(?P<oid>[0-9a-f]{64})', Handler.download),
    ('HEAD', '/storage/object/(?P<oid>[0-9a-f]{64})', Handler.download),
]
