"Encoding on a Ray cluster of this machine: the same store as without it, also when a worker is killed"
import copy, os, threading, time
from pathlib import Path
import pytest
from conftest import make_pictures
from latentfast.encode import encode
from latentfast.store import LatentStore

ray = pytest.importorskip('ray')
ARGS = dict(size=32, batch_size=3, shard_rows=7, precision='fp32', progress=False)
def content(folder): return {f.name: f.read_bytes() for f in Path(folder).iterdir()}

@pytest.fixture(scope='module')
def cluster():
    os.environ['RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO'] = '0'
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level='error',
             runtime_env=dict(env_vars=dict(PYTHONPATH=str(Path(__file__).parent.parent))))
    yield
    ray.shutdown()

def test_same_store(pictures, codec, tmp_path, cluster):
    (pictures/'cat'/'broken.png').write_text('no picture')
    encode(pictures, tmp_path/'local', codec, **ARGS, flip=True, dtype='int8')
    store = encode(pictures, tmp_path/'ray', codec, **ARGS, flip=True, dtype='int8', engine='ray', concurrency=1)
    assert content(tmp_path/'ray')==content(tmp_path/'local') and store.problems()==[] and store.index['errors']['rows']==1
    assert ray.is_initialized()  # a Ray that was running goes on running
    (tmp_path/'ray'/'train-00001.arrow').unlink(); kept = (tmp_path/'ray'/'train-00000.arrow').stat().st_mtime_ns
    encode(pictures, tmp_path/'ray', codec, **ARGS, flip=True, dtype='int8', engine='ray', concurrency=1)
    assert content(tmp_path/'ray')==content(tmp_path/'local') and kept==(tmp_path/'ray'/'train-00000.arrow').stat().st_mtime_ns

def test_an_error_in_a_worker_is_told(pictures, codec, tmp_path, cluster):
    "As without Ray: here latents that aren't finite"
    bad = copy.copy(codec); bad.model = copy.deepcopy(codec.model); bad.model.quant_conv.bias.data += float('nan')
    with pytest.raises(ValueError, match='not all finite'): encode(pictures, tmp_path/'s', bad, **ARGS, engine='ray', concurrency=1)
    with pytest.raises(ValueError, match='not all finite'): encode(pictures, tmp_path/'t', bad, **ARGS)

def test_no_such_gpu(pictures, codec, tmp_path, cluster):
    with pytest.raises(ValueError, match='the cluster has 0 GPUs'): encode(pictures, tmp_path/'s', codec, **ARGS, engine='ray', num_gpus=1)

@pytest.mark.slow
def test_killed_worker(codec, tmp_path, cluster):
    "The worker is killed in the middle of its work; another one takes over"
    import psutil
    src = make_pictures(tmp_path/'many', 400); whole = encode(src, tmp_path/'whole', codec, **ARGS); killed = []
    def kill():
        while not killed:
            if len(list((tmp_path/'ray').glob('*.arrow')))>=3:
                for p in psutil.process_iter(['cmdline']):
                    if any('MapWorker' in (o or '') for o in p.info['cmdline'] or []): p.kill(); killed.append(p.pid)
            time.sleep(.02)
    thread = threading.Thread(target=kill, daemon=True); thread.start()
    encode(src, tmp_path/'ray', codec, **ARGS, engine='ray', concurrency=1)
    thread.join(5)
    assert killed and content(tmp_path/'ray')==content(whole.path)
