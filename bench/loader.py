"""How fast random batches of 256 latents come from a store, and how fast from what people use instead.

    python bench/loader.py [--quick]

batch256: 4x32x32 float16 latents, gathered and made float32.
  datasets_torch  the same shards through datasets' torch format
  npy_files       one .npy a latent through a DataLoader, with 0 or 2 workers, whichever is faster
  memmap          one flat file, mapped: the barest there is
fastai_epoch: a pass of latent_dls, shuffled and normalised, against gathering alone
"""
import argparse, tempfile
from collections import deque
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
import numpy as np, torch
from compare import compare, seconds, show

def make(path, n, rows, shape=(4,32,32)):
    "A store of `n` random latents, and the same as a flat file"
    from latentfast.store import LatentStore, write_index, write_shard
    rng, path, shards = np.random.default_rng(0), Path(path), []
    (path/'store').mkdir()
    with open(path/'flat.bin', 'wb') as flat:
        for i in range(0, n, rows):
            z = rng.standard_normal((min(rows, n-i), *shape), np.float32).astype(np.float16)
            z.tofile(flat)
            shards.append(write_shard(path/'store'/f'train-{i//rows:05d}.arrow', z, np.zeros(len(z)), [str(j) for j in range(i, i+len(z))]))
    write_index(path/'store', shards, SimpleNamespace(name='random', fingerprint='random'), 256, shape)
    return LatentStore(path/'store')

class NpyFiles(torch.utils.data.Dataset):
    def __init__(self, files): self.files = files
    def __len__(self): return len(self.files)
    def __getitem__(self, i): return torch.from_numpy(np.load(self.files[i]).astype(np.float32))

run_through = deque(maxlen=0).extend  # keeps nothing: what is kept would cost new memory each time

def run(quick=False):
    import datasets
    from latentfast.data import latent_dls
    n, n_files, runs, turns, out = (10_000, 1024, 3, 40, []) if quick else (60_000, 5_120, 7, 200, [])
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp); store = make(tmp, n, 8192); ds = store.train
        rng = np.random.default_rng(1); batches = rng.permutation(n)[:n//256*256].reshape(-1, 256)  # all rows, as a shuffled epoch has them: a few would stay in the cache
        def each(f): return lambda: run_through(map(f, batches))
        def some(f, k=4):  # a turn of a few batches, others each time: many short turns, so that a busy moment meets both
            bs = cycle(batches)
            return lambda: run_through(f(next(bs)) for _ in range(k))
        def rate(items, f): return items/seconds(f)

        flat = np.memmap(tmp/'flat.bin', np.float16, 'r', shape=(n,*store.latent_shape))
        np.testing.assert_array_equal(ds.gather(batches[0]).numpy(), flat[batches[0]])
        out.append(compare('loader', 'batch256', 'memmap', 'latents/s', some(ds.__getitems__), some(lambda b: torch.from_numpy(flat[b]).float()), count=1024, runs=turns))

        hf = datasets.concatenate_datasets([datasets.Dataset.from_file(str(store.path/s['file'])) for s in store.index['shards']]).with_format('torch')
        hf_rows = some(lambda b: hf[b.tolist()]['latent'].float())
        out.append(compare('loader', 'batch256', 'datasets_torch', 'latents/s', some(ds.__getitems__), hf_rows, count=1024, runs=turns//4))

        our_rate = lambda: rate(batches.size, each(ds.__getitems__))
        (tmp/'npy').mkdir(); files = [tmp/'npy'/f'{i}.npy' for i in range(n_files)]
        for f,z in zip(files, flat): np.save(f, z)
        def npy_rate(workers): return rate(n_files, lambda: run_through(torch.utils.data.DataLoader(NpyFiles(files), 256, shuffle=True, num_workers=workers)))
        out.append(compare('loader', 'batch256', 'npy_files', 'latents/s', our_rate, lambda: max(map(npy_rate, (0,2))), runs=runs, measured=True))

        dls = latent_dls(store, bs=256, valid_bs=256)
        def epoch(): return rate(n//256*256, lambda: run_through(dls.train))
        def gather(): return rate(batches.size, each(ds.gather))
        out.append(compare('loader', 'fastai_epoch', 'gather', 'latents/s', epoch, gather, runs=runs, measured=True))
        out.append(compare('loader', 'fastai_epoch', 'getitems', 'latents/s', epoch, our_rate, runs=runs, measured=True))
        del hf, flat
    return out

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='fewer latents and runs; under a minute')
    import warnings; warnings.filterwarnings('ignore', message='.*no validation pictures.*')
    show(run(p.parse_args().quick))
