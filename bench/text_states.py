"""What it saves to keep what a text encoder says about the captions, instead of the encoder, in memory while a U-Net is trained.

    python bench/text_states.py [--quick]           # needs transformers: pip install 'latentfast[text]'

step (s), memory (MB, the process at its peak): a step of unet_small with captions, batches of 64, 4x8x8 latents, states kept by `store_text`
  encoder_in_memory  the encoder reads each batch's captions
The encoder has the size of CLIP ViT-L/14's text half, 123 M parameters, and random weights: neither time nor memory depends on them.
"""
import argparse, itertools, json, resource, statistics, subprocess, sys, tempfile, time, warnings
from pathlib import Path
import torch

def save_encoder(folder, words):
    "An untrained text encoder of CLIP ViT-L/14's size, with a tokenizer of `words`"
    import transformers as tf
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    tok = Tokenizer(models.WordLevel({w: i for i,w in enumerate(['[pad]','[bos]','[eos]','[unk]',*words])}, unk_token='[unk]'))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.post_processor = processors.TemplateProcessing(single='[bos] $A [eos]', special_tokens=[('[bos]',1),('[eos]',2)])
    tf.PreTrainedTokenizerFast(tokenizer_object=tok, pad_token='[pad]', bos_token='[bos]', eos_token='[eos]', unk_token='[unk]', model_max_length=77).save_pretrained(folder)
    tf.CLIPTextModel(tf.CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768, bos_token_id=1, eos_token_id=2, pad_token_id=0)).save_pretrained(folder)

def prepare(tmp, n=2048):
    "A store of random latents with captions of rendered scenes, and the states of these captions"
    import numpy as np
    from latentfast.autoencoder import LatentCodec
    from latentfast.conditioning import TextEncoder, store_text
    from latentfast.scenes import random_scene
    from latentfast.store import LatentStore, write_index, write_shard
    captions = [random_scene(i).caption for i in range(n)]
    save_encoder(tmp/'encoder', sorted({w for c in captions for w in c.split()}))
    z = np.random.default_rng(0).standard_normal((n,4,8,8), np.float32).astype(np.float16)
    (tmp/'store').mkdir()
    shard = write_shard(tmp/'store'/'train-00000.arrow', z, np.zeros(n, int), [str(i) for i in range(n)], captions)
    write_index(tmp/'store', [shard], LatentCodec.from_pretrained('tiny'), 64, (4,8,8), extras=['caption'])
    store_text(LatentStore(tmp/'store'), TextEncoder.from_pretrained(tmp/'encoder'), progress=False)

def measure(tmp, live, steps):
    "Seconds a step, and the peak of this process's memory in MB"
    from fastai.callback.core import Callback, CancelFitException
    from latentfast.conditioning import TextCondition, TextEncoder
    from latentfast.data import latent_dls
    from latentfast.training import diffusion_learner
    class Live(TextCondition):
        "As `TextCondition`, with the encoder at work in each batch"
        def __call__(self, dataset, rows): text, mask = self.encoder([dataset.captions(int(i)) for i in rows], warn=False); return dict(text=text, mask=mask)
    class Timed(Callback):
        order, run_valid = 100, False
        def after_batch(self):
            times.append(time.perf_counter())
            if len(times)>steps: raise CancelFitException
    from latentfast.store import LatentStore
    store, times = LatentStore(tmp/'store'), []
    cond = Live(store, encoder=TextEncoder.from_pretrained(tmp/'encoder')) if live else TextCondition(store)
    learn = diffusion_learner(latent_dls(store, bs=64, cond=cond, seed=0), size='small', seed=0)
    with learn.no_bar(), learn.no_logging(): learn.fit(9, 1e-4, cbs=Timed())
    print(json.dumps([statistics.median(b-a for a,b in itertools.pairwise(times)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024]))

def run(quick=False):
    runs, steps, out = 1 if quick else 3, 6 if quick else 20, {True: [], False: []}
    with tempfile.TemporaryDirectory() as tmp:
        prepare(Path(tmp), 256 if quick else 2048)
        for _ in range(runs):
            for live in out:
                done = subprocess.run([sys.executable, __file__, '--child', tmp, str(int(live)), str(steps)], stdout=subprocess.PIPE, text=True, check=True).stdout
                out[live].append(json.loads(done.splitlines()[-1]))
    for i,(case,unit) in enumerate((('step','s'), ('memory','MB'))):
        a, b = ([o[i] for o in out[live]] for live in (False, True))
        ratios = sorted(x/y for x,y in zip(a, b)); a, b = statistics.median(a), statistics.median(b)
        yield dict(bench='text_states', case=case, peer='encoder_in_memory', unit=unit, ours=a, theirs=b, ratio=a/b, runs=runs, spread=[ratios[0], ratios[-1]])

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='one run of a few steps'); p.add_argument('--child', nargs=3, help=argparse.SUPPRESS)
    a = p.parse_args()
    warnings.filterwarnings('ignore')
    if a.child: measure(Path(a.child[0]), a.child[1]=='1', int(a.child[2]))
    else:
        from compare import show
        show(run(a.quick))
