"""Train the bundled classifier `tiny-imagenet` on a store of Tiny ImageNet's pictures, encoded at 128 pixels by the bundled autoencoder.

    latentfast encode tiny-imagenet STORE --size 128 --flip
    python scripts/train_classifier.py STORE --out latentfast/models/classifier

The network and the recipe are `classifier_learner`'s own. A checkpoint is written every five minutes: Ctrl-C or a kill loses no more, and
the same command goes on. The weights are saved in float16, and it is those that the store's validation pictures are classified with at the
end, once.
"""
import argparse, json
from pathlib import Path
from latentfast.autoencoder import LatentCodec
from latentfast.callbacks import Checkpoint
from latentfast.classifier import LatentClassifier, classifier_learner
from latentfast.data import latent_dls
from latentfast.store import LatentStore

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('store', help='the encoded pictures')
    ap.add_argument('--out', default='latentfast/models/classifier', help='where config.json and fp16 safetensors go')
    ap.add_argument('--work', default='classifier-training', help='folder for the checkpoint and the log')
    ap.add_argument('--epochs', type=int, default=16, help='a pass takes about 80 s of one core')
    ap.add_argument('--batch-size', type=int, default=64)
    ap.add_argument('--lr', type=float, help="peak of the one-cycle schedule; the learner's own if not given")
    ap.add_argument('--max-mb', type=float, default=8., help='largest file, in million bytes')
    ap.add_argument('--seed', type=int, default=0)
    a = ap.parse_args()
    work, store = Path(a.work), LatentStore(a.store)
    store.check_codec(LatentCodec.from_pretrained('tiny'))
    settings = {k: v for k,v in vars(a).items() if k not in ('store','out','work')}
    settings.update(fingerprint=store.fingerprint, counts=store.index['counts'])
    learn = classifier_learner(latent_dls(store, bs=a.batch_size, seed=a.seed), seed=a.seed)
    size = 2*sum(p.numel() for p in learn.model.parameters())/1e6
    if size>a.max_mb: raise ValueError(f'This network takes {size:.1f} MB in float16, more than {a.max_mb:g}.')
    def told(epoch):
        row = dict(zip(learn.recorder.metric_names[1:-1], map(float, learn.recorder.values[-1])))
        with open(work/'log.jsonl', 'a') as f: f.write(json.dumps(dict(epoch=epoch+1, **row))+'\n')
    learn.fit_quietly(a.epochs, a.lr or learn.lr, label='classifier', cbs=[Checkpoint(work/'checkpoint.pt', settings, after_save=told)])
    learn.model.half().save_pretrained(a.out)
    learn.model = LatentClassifier.from_pretrained(a.out).eval()
    with learn.no_bar(): loss, top1, top5 = learn.validate()
    n, file = sum(p.numel() for p in learn.model.parameters()), next(Path(a.out).glob('*.safetensors'))
    print(f'{a.out}: {n/1e6:.2f} M parameters, {file.stat().st_size/1e6:.1f} MB; '
          f'top-1 {top1:.1%}, top-5 {top5:.1%} of {len(store.valid):,} validation pictures')

if __name__=='__main__': main()
