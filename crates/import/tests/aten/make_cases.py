"""Writes the programs of this folder: each operator of ATen in the forms that exported programs use.

    $(scripts/python-env.sh | tail -n 1) crates/import/tests/aten/make_cases.py [NAME...]

A case gives `NAME.pt2` as exported, `NAME_decomp.pt2` after `run_decompositions()`, and `NAME.safetensors`
with inputs and PyTorch's answers (`input.N`, `expected.N`; `input2.N`, `expected2.N` for other sizes;
`expected_call2.N` and on for programs with state). `refused/NAME.pt2` are programs that the importer refuses.
"""

import copy
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch._higher_order_ops.map import map as higher_order_map
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.export import Dim, export
from torch.utils import _pytree as pytree

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2] / "conformance" / "fixtures"))
from pt2_archive import shrink  # noqa: E402

warnings.filterwarnings("ignore")
torch.manual_seed(0)
S = Dim.DYNAMIC
CASES = {}
REFUSED = {}


class Model(nn.Module):
    """A function with the modules, parameters and buffers that it uses."""

    def __init__(self, f, members):
        super().__init__()
        self.f = f
        for name, member in members.items():
            if isinstance(member, torch.Tensor) and not isinstance(member, nn.Parameter):
                self.register_buffer(name, member)
            else:
                setattr(self, name, member)

    def forward(self, *args):
        return self.f(self, *args)


def case(name, *inputs, dynamic=None, second=None, decompose=True, **members):
    def register(f):
        CASES[name] = (Model(f, members), inputs, dynamic, second, decompose)
        return f

    return register


def refused(*inputs):
    def register(f):
        members = {"weight": nn.Parameter(torch.ones(3, 4)), "kept": torch.zeros(3, 4)}
        REFUSED[f.__name__] = (Model(f, members), inputs)
        return f

    return register


def r(*shape):
    return torch.randn(*shape)


def ii(high, *shape):
    return torch.randint(0, high, shape)


def tensors(tree):
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def save(program, path):
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "model.pt2"
        torch.export.save(program, whole)
        shrink(whole, path)


def write(name, model, inputs, dynamic, second, decompose):
    model = model.eval()
    for norm in model.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)) and norm.running_var is not None:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    shapes = None if dynamic is None else (dynamic,)
    program = export(model, inputs, dynamic_shapes=shapes, strict=False)
    programs = {"": program}
    if decompose:
        programs["_decomp"] = program.run_decompositions()
    for suffix, p in programs.items():
        save(p, HERE / f"{name}{suffix}.pt2")
    data = {}

    def put(prefix, values):
        data.update({f"{prefix}.{i}": v.detach().contiguous().clone() for i, v in enumerate(values)})

    def run(runner, args):
        given = [a.clone() for a in args]
        with torch.no_grad():
            results = tensors(runner(*given))
        # New values of inputs that it writes to are outputs behind its own.
        return results + [a for a in given if a._version]

    put("input", inputs)
    runner = copy.deepcopy(model)
    put("expected", run(runner, inputs))
    if tensors(dict(model.named_buffers(recurse=False))):
        put("expected_call2", run(runner, inputs))
        put("expected_call3", run(runner, inputs))
    if second is not None:
        put("input2", second)
        put("expected2", run(copy.deepcopy(model), second))
    save_file(data, HERE / f"{name}.safetensors")


@torch.no_grad()
def rotation(self, x):
    pos = torch.arange(x.shape[1])[None].float()
    with torch.autocast(device_type="cpu", enabled=False):
        f = (self.inv[None, :, None].float() @ pos[:, None, :]).transpose(1, 2)
        e = torch.cat([f, f], -1)
        return (e.cos(), e.sin())


@case("inputs_written", r(3, 4), r(2, 4), r(3))
def inputs_written(self, x, cache, counts):
    cache[1:].copy_(x[:1])
    y = x.add_(1) * 2
    counts.zero_()
    return y, cache.sum() + x.sum()


@case(
    "promo",
    r(3, 4),
    ii(10, 3, 4),
    ii(2, 3, 4).bool(),
    r(3, 4).half(),
)
def promo(self, x, i, b, h):
    return (
        i * 0.5,
        x * 2,
        i / i.clamp(min=1),
        b.sum(),
        b + 1,
        i + b,
        h * 0.1,
        h + x,
        i > 0.5,
        x > i,
        i.float().mean(),
        i.to(torch.int32) + i,
        b * b,
        b | True,
        x[0, 0] * i,
        h * x[0, 0],
        torch.rsub(i, 3.5),
        i.pow(2),
        i**0.5,
        x.pow(3),
        2**x,
        torch.true_divide(i, 2),
        i // 2,
        i % 3,
        x % 0.7,
        torch.fmod(x, 0.7),
        x // 0.5,
        torch.div(x, 0.3, rounding_mode="trunc"),
    )


@case(
    "acts",
    r(2, 6, 4),
    p=nn.PReLU(6),
    p1=nn.PReLU(),
)
def acts(self, x):
    return (
        F.relu6(x * 4),
        F.hardtanh(x),
        F.leaky_relu(x, 0.2),
        F.elu(x),
        F.selu(x),
        F.celu(x, 1.3),
        F.mish(x),
        F.softplus(x),
        F.softplus(x * 3, beta=2, threshold=5),
        F.logsigmoid(x),
        F.glu(x),
        F.gelu(x),
        F.gelu(x, approximate="tanh"),
        F.hardswish(x),
        F.hardsigmoid(x),
        F.silu(x),
        F.hardshrink(x),
        F.softshrink(x),
        F.tanhshrink(x),
        F.softsign(x),
        F.threshold(x, 0.1, -2.0),
        self.p(x),
        self.p1(x),
        F.rrelu(x),
    )


@case(
    "unary",
    r(3, 5),
    ii(5, 3, 5),
)
def unary(self, x, i):
    return (
        x.exp2(),
        x.abs().log2(),
        x.abs().log10(),
        x.tan(),
        x.erfc(),
        x.frac(),
        x.trunc(),
        x.isnan(),
        (x / 0).isinf(),
        (x / 0).isfinite(),
        torch.nan_to_num(x / 0),
        torch.logit(x.sigmoid()),
        torch.logit(x, eps=0.1),
        i.exp(),
        i.sqrt(),
        i.abs(),
        -i,
        i.sign(),
        i.float().round(),
        x.square(),
        torch.addcmul(x, x, x, value=0.5),
        torch.addcdiv(x, x, x.exp(), value=2),
        torch.lerp(x, x * 2, 0.3),
        torch.lerp(x, x * 2, x.sigmoid()),
        x.expm1(),
        x.abs().log1p(),
        x.sgn(),
        i.relu(),
    )


@case(
    "clampw",
    r(4, 3),
    ii(6, 4, 3),
)
def clampw(self, x, i):
    return (
        x.clamp(-0.5, 0.5),
        x.clamp(min=0),
        x.clamp(max=0.1),
        x.clamp(0, 6),
        i.clamp(1, 3),
        i.clamp(min=1.5),
        x.clamp(min=x.mean()),
        torch.where(x > 0, x, 0.0),
        torch.where(x > 0, 1.0, x),
        torch.where(x > 0, i, x),
        torch.where(x > 0, 1, 2),
        x.masked_fill(x > 0, float("-inf")),
        x.masked_fill(x > 0, x.mean()),
        i.masked_fill(x > 0, 7),
        torch.maximum(x, i),
        torch.minimum(i, i.flip(0)),
        torch.logical_and(x > 0, i),
        torch.logical_xor(x > 0, i > 2),
        ~(x > 0),
        ~i,
        i & 3,
        i | 4,
        i ^ 1,
        (x > 0) ^ (i > 2),
        torch.max(x, x * 0.5),
    )


@case(
    "matmul",
    r(5, 4),
    r(4, 3),
    r(4),
    r(4),
    r(2, 5, 4),
    r(2, 4, 6),
    W=nn.Parameter(r(4, 7)),
)
def matmul(self, a, b, v, w, c, d):
    return (
        a @ b,
        v @ w,
        a @ w,
        v @ b,
        c @ d,
        c @ w,
        v @ d,
        c @ b,
        b.mT @ a.mT,
        torch.mv(a, w),
        torch.dot(v, w),
        torch.outer(v, w),
        torch.addmm(torch.ones(3), a, b, beta=0.5, alpha=2),
        torch.baddbmm(c[:, :, :3], c, d[:, :, :3], beta=0.5, alpha=0.25),
        torch.bmm(c, d),
        a @ self.W,
        c @ self.W,
        F.linear(c, self.W.t()),
        v @ self.W,
    )


@case(
    "einsum",
    r(2, 3, 4),
    r(2, 4, 6),
    r(2, 5, 4),
    W=nn.Parameter(r(4, 7)),
)
def einsum(self, a, b, c):
    return (
        torch.einsum("bij,bjk->bik", a, b),
        torch.einsum("bij,bjk", a, b),
        torch.einsum("bij->bji", a),
        torch.einsum("bij->b", a),
        torch.einsum("...ij,...jk->...ik", a, b),
        torch.einsum("bij,bkj->bik", a, c),
        torch.einsum("bhqd,bhkd->bhqk", a[:, None], c[:, None]),
        torch.einsum("i,j->ij", a[0, 0], b[0, 0]),
        torch.einsum("bij,jk->bik", a, self.W),
        torch.einsum("bij,bjk,kl->bil", a, b, torch.ones(6, 2)),
        torch.einsum("bnd,md->bnm", a, self.W.t()),
    )


@case(
    "convs",
    r(2, 4, 9, 8),
    r(2, 4, 11),
    r(2, 4, 5, 5, 5),
    c1=nn.Conv1d(4, 6, 3, stride=2, padding=1),
    c1s=nn.Conv1d(4, 6, 4, padding="same", dilation=2),
    c2=nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2),
    c2s=nn.Conv2d(4, 6, (4, 3), padding="same"),
    c2v=nn.Conv2d(4, 2, 3, padding="valid"),
    c2r=nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect"),
    c3=nn.Conv3d(4, 2, 3, padding=1),
    t1=nn.ConvTranspose1d(4, 3, 3, stride=2, padding=1, output_padding=1),
    t2=nn.ConvTranspose2d(4, 6, 3, stride=2, dilation=2, groups=2),
    t3=nn.ConvTranspose3d(4, 2, 2, stride=2),
)
def convs(self, x, y, z):
    return (
        self.c1(y),
        self.c1s(y),
        self.c2(x),
        self.c2s(x),
        self.c3(z),
        self.t1(y),
        self.t2(x),
        self.t3(z),
        self.c2(x[0]),
        self.c2v(x),
        self.c2r(x),
    )


@case(
    "norms",
    r(3, 4, 5, 6),
    r(3, 2, 6),
    b2=nn.BatchNorm2d(4),
    i2=nn.InstanceNorm2d(4),
    i2a=nn.InstanceNorm2d(4, affine=True),
    g=nn.GroupNorm(2, 4),
    l=nn.LayerNorm(6),
    l2=nn.LayerNorm((5, 6)),
    b1=nn.BatchNorm1d(6),
    bnt=nn.BatchNorm2d(4, affine=False),
)
def norms(self, x, y):
    return (
        self.b2(x),
        self.i2(x),
        self.i2a(x),
        self.g(x),
        self.l(y),
        self.l2(x),
        self.b1(y.mT),
        self.b1(y[:, 0]),
        F.normalize(y, dim=-1),
        F.layer_norm(y, (6,)),
        F.rms_norm(y, (6,)),
        self.bnt(x),
        x,
    )


@case(
    "sdpa",
    r(2, 4, 5, 8),
    r(2, 4, 7, 8),
    r(2, 4, 7, 6),
    ii(3, 2, 1, 5, 7) > 0,
    r(2, 1, 5, 7),
)
def sdpa(self, q, k, v, m, f):
    return (
        F.scaled_dot_product_attention(q, k, v),
        F.scaled_dot_product_attention(q, k, v, attn_mask=m),
        F.scaled_dot_product_attention(q, k, v, attn_mask=f),
        F.scaled_dot_product_attention(q, q, q, is_causal=True),
        F.scaled_dot_product_attention(q[:, 0], k[:, 0], v[:, 0], scale=0.3),
        F.scaled_dot_product_attention(q[0, 0], k[0, 0], v[0, 0]),
        F.scaled_dot_product_attention(q[:, 0], k[:, 0], v[:, 0], attn_mask=f[:, 0]),
        F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True),
    )


@case(
    "softs",
    r(3, 5),
    r(3, 5).half(),
)
def softs(self, x, h):
    return (
        x.softmax(-1),
        x.log_softmax(1),
        x.softmax(0, dtype=torch.float64),
        h.softmax(-1),
        h.softmax(-1, dtype=torch.float32),
        x.logsumexp(1),
        x.logsumexp((0, 1), keepdim=True),
        F.softmin(x, 1),
    )


@case(
    "index",
    r(4, 3, 4),
    ii(3, 3),
    ii(3, 3),
    e=nn.Embedding(5, 4, padding_idx=0),
    W=nn.Parameter(r(5, 4)),
)
def index(self, x, i, j):
    return (
        x[i],
        x[:, j],
        x[i, j],
        x[:, :, i],
        x[i, :, j],
        x[:, i, j],
        x[None, i],
        torch.index_select(x, 1, j),
        torch.index_select(x, 0, i),
        torch.gather(x, 2, (i[:, None, None] % 2).expand(3, 2, 2).contiguous()),
        torch.take_along_dim(x, i[:1, None, None] % 2, 2),
        self.e(i),
        F.embedding(i, self.W),
        self.W[i],
        x[-1],
        x[..., -2:],
        x[1:-1],
        x[::2],
        x[:, -3:-1],
        x[5:],
        x[:100],
        x[torch.tensor([-1, 0])],
        F.one_hot(i, 5),
    )


@case(
    "ebag",
    ii(10, 4, 3),
    b=nn.EmbeddingBag(10, 5, mode="sum"),
    m=nn.EmbeddingBag(10, 5, mode="mean"),
)
def ebag(self, i):
    return (
        self.b(i),
        self.m(i),
    )


@case(
    "pools",
    r(2, 3, 9, 7),
    r(2, 3, 10),
    r(2, 2, 4, 4, 4),
    decompose=False,
)
def pools(self, x, y, z):
    return (
        F.max_pool2d(x, 3, 2, 1),
        F.max_pool2d(x, 2, ceil_mode=True),
        F.max_pool1d(y, 3),
        F.max_pool3d(z, 2),
        F.avg_pool2d(x, 3, 2, 1),
        F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        F.avg_pool2d(x, 2, divisor_override=3),
        F.avg_pool1d(y, 3, 2),
        F.avg_pool3d(z, 2),
        F.adaptive_avg_pool2d(x, (3, 2)),
        F.adaptive_avg_pool2d(x, (None, 1)),
        F.adaptive_avg_pool1d(y, 4),
        F.adaptive_avg_pool3d(z, 2),
        F.adaptive_max_pool2d(x, 1),
        F.adaptive_max_pool1d(y, 1),
        F.max_pool2d(x[0], 2),
        F.adaptive_avg_pool2d(x[0], 1),
        F.max_pool2d(x, 2, dilation=2),
    )


@case(
    "pools2",
    r(2, 3, 9, 7),
    r(2, 3, 10),
    r(2, 2, 4, 4, 4),
)
def pools2(self, x, y, z):
    return (
        F.max_pool2d(x, 3, 2, 1),
        F.avg_pool2d(x, 3, 2, 1),
        F.avg_pool1d(y, 3, 2),
        F.adaptive_avg_pool2d(x, (3, 2)),
        F.adaptive_avg_pool2d(x, 1),
        F.avg_pool3d(z, 2),
        F.max_pool3d(z, 2),
    )


@case(
    "resizes",
    r(2, 4, 5, 6),
    r(2, 3, 5),
    r(1, 2, 3, 3, 3),
    decompose=False,
)
def resizes(self, x, y, z):
    return (
        F.interpolate(x, scale_factor=2),
        F.interpolate(x, size=(7, 9)),
        F.interpolate(x, scale_factor=2, mode="bilinear"),
        F.interpolate(x, size=(9, 11), mode="bilinear", align_corners=True),
        F.interpolate(x, scale_factor=1.7, mode="bilinear"),
        F.interpolate(x, scale_factor=0.6, mode="nearest"),
        F.interpolate(y, scale_factor=2),
        F.interpolate(y, scale_factor=2, mode="linear"),
        F.interpolate(z, scale_factor=2, mode="trilinear"),
        F.interpolate(z, scale_factor=2),
        F.pixel_shuffle(x, 2),
        F.pixel_unshuffle(x[..., :4, :4], 2),
        F.channel_shuffle(x, 2),
        F.interpolate(x, scale_factor=1.7, mode="bilinear", recompute_scale_factor=True),
    )


@case(
    "resizes_core",
    r(2, 4, 5, 6),
    r(2, 3, 5),
    r(1, 2, 3, 3, 3),
)
def resizes_core(self, x, y, z):
    return (
        F.interpolate(x, scale_factor=2),
        F.interpolate(x, scale_factor=2, mode="bilinear"),
        F.pixel_shuffle(x, 2),
        F.interpolate(x, size=(9, 11), mode="bilinear", align_corners=True),
    )


@case(
    "reduces",
    r(2, 3, 4),
    ii(5, 3, 4),
    ii(2, 3, 4).bool(),
)
def reduces(self, x, i, b):
    return (
        x.sum(),
        x.sum(1),
        x.sum((0, 2), keepdim=True),
        i.sum(),
        b.sum(1),
        x.mean(),
        x.mean((1, 2)),
        x.prod(),
        x.prod(1),
        i.prod(1),
        x.amax(1),
        x.amin((0, 1)),
        x.max(),
        x.max(1),
        x.min(2, keepdim=True),
        b.any(),
        b.any(1),
        b.all(),
        b.all(-1),
        x.argmax(),
        x.argmax(1),
        x.argmin(-1, keepdim=True),
        x.var(),
        x.var(1),
        x.var((0, 1), correction=0),
        x.std(1, unbiased=False),
        x.std(),
        torch.var_mean(x, 1),
        torch.std_mean(x, (0, 1)),
        x.norm(),
        x.norm(dim=1),
        x.norm(p=1, dim=1),
        torch.linalg.vector_norm(x, 3, dim=1),
        x.norm(p=float("inf")),
        x.cumsum(1),
        i.cumsum(0),
        b.cumsum(1),
        x.sum(1, dtype=torch.float64),
        i.float().mean(1),
        torch.aminmax(x),
        x.any(),
        i.any(1),
        x.sum(dim=()),
    )


@case(
    "shapes",
    r(2, 3, 4),
    r(2, 3, 4),
)
def shapes(self, x, y):
    return (
        x.view(6, 4),
        x.reshape(-1, 8),
        x.flatten(1),
        x.flatten(),
        x.unflatten(2, (2, -1)),
        x[None].squeeze(),
        x[None].squeeze(0),
        x.unsqueeze(-1),
        x.permute(2, 0, 1),
        x.transpose(0, 2),
        x.movedim(0, 2),
        x[0].t(),
        x[0].T,
        x[0].mT,
        x[:1].expand(5, -1, -1),
        x[:, :1].expand_as(x),
        x.repeat(2, 1, 3),
        x.repeat(2, 1, 1, 1),
        x.tile(2),
        x.repeat_interleave(3, 1),
        x.repeat_interleave(2),
        torch.broadcast_to(x, (3, 2, 3, 4)),
        x.split(2, 1),
        x.split([1, 3], 2),
        x.chunk(3, 2),
        x.unbind(1),
        torch.tensor_split(x, 3, 2),
        torch.cat([x, y], 0),
        torch.stack([x, y], 1),
        torch.hstack([x, y]),
        torch.vstack([x, y]),
        torch.cat([x, y.long()], -1),
        x.narrow(2, 1, 2),
        x.select(1, -1),
        x.ravel(),
        torch.meshgrid(x[0, 0], y[0, :, 0], indexing="ij"),
        torch.meshgrid(x[0, 0], y[0, :, 0], indexing="xy"),
        x.swapaxes(0, 1),
        x.view_as(y),
        torch.broadcast_tensors(x, y[:1]),
    )


@case(
    "borders",
    r(2, 2, 3, 4),
    ii(2, 3, 3).bool(),
)
def borders(self, x, b):
    return (
        F.pad(x, (1, 2)),
        F.pad(x, (1, 2, 0, 1), value=3.0),
        F.pad(x, (-1, 1)),
        F.pad(x, (1, 1, 2, 1), mode="reflect"),
        F.pad(x, (1, 1, 2, 1), mode="replicate"),
        F.pad(x[0], (2, 1), mode="reflect"),
        x.flip(-1),
        x.flip((0, 2)),
        x.roll(1, 2),
        x.roll((-1, 2), (1, 2)),
        x.roll(3),
        x.tril(),
        x.triu(1),
        x.tril(-1),
        b.tril(),
        x.diff(),
        x.diff(dim=1, n=2),
        x.diff(dim=3, prepend=x[..., :1]),
        torch.select_scatter(x[0], x[0, 0], 0, 1),
        torch.slice_scatter(x, x[..., :2], -1, 1, 3),
    )


@case(
    "creates",
    r(2, 3),
)
def creates(self, x):
    return (
        torch.full((2, 3), 7),
        torch.full_like(x, 2),
        torch.zeros(3) + x[0, 0],
        torch.ones_like(x),
        x.new_zeros(2, 2),
        x.new_ones(2, dtype=torch.int64),
        x.new_full((2,), 5.0),
        torch.arange(5),
        torch.arange(1, 9, 2),
        torch.arange(0, 1, 0.1),
        torch.arange(5.0),
        torch.arange(3, dtype=torch.float16),
        torch.linspace(0, 1, 7),
        torch.linspace(-1, 1, 5),
        torch.eye(3),
        torch.eye(2, 4),
        torch.tensor([1.0, 2.0]),
        torch.tensor(3.0) * x,
        torch.zeros_like(x, dtype=torch.bool),
        torch.empty_like(x).fill_(3.0),
        torch.scalar_tensor(4.0),
    )


@case(
    "tos",
    r(3, 4) * 3,
    ii(5, 3, 4),
)
def tos(self, x, i):
    return (
        x.half(),
        x.bfloat16().float(),
        x.to(torch.int32),
        i.float(),
        i.bool(),
        x.double(),
        i.type_as(x),
        x.to(i),
        x.long(),
        x.clone(),
        x.contiguous(),
        x.t().contiguous(),
        F.dropout(x, 0.5, False),
        x.detach(),
        torch.zeros_like(i).copy_(x),
        i.to(torch.uint8),
        i.to(torch.int16) * i.to(torch.int8),
    )


@case(
    "inplace",
    r(3, 4),
)
def inplace(self, x):
    y = x * 1
    y.add_(1)
    z = y.relu_()
    y.mul_(2)
    w = x.clone()
    w[:, 0] = 5.0
    w[1:, 2:].add_(3.0)
    v = w.view(-1)
    v.mul_(2)
    u = torch.zeros(3, 4)
    u[0] = x[0]
    u[:, 1:3].copy_(x[:, :2])
    ut = u.t()
    ut[0].fill_(9.0)
    a = x + 0
    b = a.detach()
    a.sub_(1)
    c = a.contiguous()
    c.clamp_(min=0)
    d = x + 0
    d.unsqueeze_(0)
    e = x.t().contiguous()
    e.add_(1)
    m = x * 2
    m.masked_fill_(m > 0, -1.0)
    q = x + 1
    q.zero_()
    k = (x + 1).exp_().sqrt_().neg_()
    return (y, z, w, v, u, ut, a, b, c, d, e, m, q, k)


@case(
    "inplace2",
    r(3, 4),
)
def inplace2(self, x):
    y = x.permute(1, 0).reshape(3, 4)
    y = y + 0
    a = x + 0
    r0 = a.reshape(4, 3)
    r0.add_(1)
    p = x * 1
    q = p[0]
    p.add_(1)
    q2 = q * 2
    q.mul_(3)
    i = (x * 10).long()
    i.add_(1)
    i //= 2
    return (y, a, r0, p, q2, i)


@case(
    "state",
    r(2, 2),
    cache=torch.zeros(2, 5),
    count=torch.zeros(()),
)
def state(self, x):
    self.cache[:, 1:3] = x
    self.count.add_(1)
    self.cache.mul_(1.5)
    return (self.cache * 2 + self.count, self.count * 1.0)


@case(
    "dyn_shapes",
    r(2, 6, 4),
    dynamic=({0: S, 1: S},),
    second=(r(3, 9, 4),),
)
def dyn_shapes(self, x):
    return (
        x[:, -3:],
        x[:, :5],
        x[:, 2:],
        x[:, :-1],
        x.reshape(x.shape[0], -1),
        x.flatten(1),
        x.mean(1),
        x.var(1),
        x.chunk(2, -1),
        x.roll(1, 1),
        x.tril(),
        torch.arange(x.shape[1]),
        x + torch.arange(x.shape[1])[:, None],
        torch.cat([x, x], 1),
        x.sum((1, 2)) / x.shape[1],
        x.repeat(1, 2, 1),
        torch.zeros(x.shape[0], x.shape[1]),
        x[:, -1],
        x[:, x.shape[1] // 2],
        torch.ones(x.shape[1], x.shape[1]).tril(),
        F.pad(x, (0, 0, 1, 1)),
        x.repeat_interleave(2, 0),
        x.split([1, 3], -1),
        x.transpose(1, 2) @ x,
    )


@case(
    "dyn_conv",
    r(2, 3, 8, 8),
    dynamic=({0: S, 2: S, 3: S},),
    second=(r(3, 3, 13, 10),),
    c=nn.Conv2d(3, 4, 3, stride=2, padding=1),
)
def dyn_conv(self, x):
    return (
        self.c(x),
        F.interpolate(self.c(x), scale_factor=2),
        F.max_pool2d(x, 2),
        F.adaptive_avg_pool2d(x, 1),
        F.interpolate(x, size=(x.shape[2] * 2, x.shape[3] * 2), mode="bilinear"),
        F.avg_pool2d(x, 3, 2, 1),
        F.interpolate(F.max_pool2d(x, 2), size=x.shape[2:]),
    )


@case(
    "rope",
    r(2, 6, 8),
    dynamic=({0: S, 1: S},),
    second=(r(3, 9, 8),),
    inv=r(4),
)
def rope(self, x):
    c, n = rotation(self, x)
    h = x.shape[-1] // 2
    rot = torch.cat([-x[..., h:], x[..., :h]], -1)
    return x * c + rot * n


@case(
    "sym_out",
    r(3, 4),
    dynamic=({0: S, 1: S},),
    second=(r(5, 6),),
)
def sym_out(self, x):
    return (
        x * x.shape[0],
        x + x.shape[1] * 2,
        torch.full((x.shape[0],), x.shape[1]),
        x / x.shape[1],
        x,
    )


@case(
    "lstms",
    r(2, 6, 5),
    r(6, 2, 5),
    r(2, 2, 3),
    r(2, 2, 3),
    a=nn.LSTM(5, 4, num_layers=2, bidirectional=True, batch_first=True),
    b=nn.LSTM(5, 3),
    c=nn.LSTM(5, 3, bias=False, bidirectional=True),
)
def lstms(self, x, y, h, c):
    return self.a(x), self.b(y), self.b(y[:, 0]), self.c(y, (h, c))


@case(
    "transformer",
    r(2, 5, 16),
    encoder=nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True),
        2,
        enable_nested_tensor=False,
    ),
    attention=nn.MultiheadAttention(16, 4),
)
def transformer(self, x):
    y = self.encoder(x)
    return y, self.attention(y, x, x)


MASKS = torch.tensor([[1, 1, 0, 0, 0], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)


@case(
    "counted_sizes",
    r(4, 2, 6, 8),
    r(4, 2, 5, 8),
    MASKS,
    second=(r(4, 2, 6, 8), r(4, 2, 5, 8), MASKS.flip(0).roll(1, 1)),
    decompose=False,
    linear=nn.Linear(8, 8),
    table=nn.Parameter(r(5, 3)),
)
def counted_sizes(self, image, text, masks):
    whole, cut, looked_up = [], [], []
    for i in range(4):
        places = torch.nonzero(masks[i]).flatten()
        chosen = text[i : i + 1, :, places]
        queries, keys = (torch.cat([x[i : i + 1], chosen], 2) for x in (image, image * 2))
        seen = F.scaled_dot_product_attention(queries, keys, keys.tanh())
        whole.append(F.pad(seen, (0, 0, 0, 11 - seen.size(2))))
        front, rest = seen.split_with_sizes([6, seen.size(2) - 6], 2)
        rest = self.linear(rest.transpose(1, 2).reshape(1, -1, 16).unflatten(2, (2, 8)))
        cut.append(front + F.pad(rest, (0, 0, 0, 0, 0, 6 - rest.size(1)), value=0.5).transpose(1, 2))
        rows = self.table[(places + 1).clamp(max=4)] + F.embedding(places, self.table)
        looked_up.append(F.pad(rows, (0, 0, 0, 4 - places.size(0))))
    return torch.cat(whole).transpose(1, 2).flatten(2), torch.cat(cut), torch.stack(looked_up)


@case(
    "chosen_rows",
    r(4, 3, 8),
    MASKS,
    r(3, 3, 8),
    second=(r(4, 3, 8), ~MASKS, r(3, 3, 8)),
    decompose=False,
    linear=nn.Linear(8, 8),
)
def chosen_rows(self, x, masks, rows):
    outputs = []
    for mask in (masks[:, 0], masks[:, 2], masks[:, 1] | True):
        chosen = x[mask]
        y = x.clone()
        y[mask] = F.gelu(self.linear(F.layer_norm(chosen, (8,)))) + chosen
        outputs.append(y)
    z = x.clone()
    z[masks[:, :3]] = masks.float().mean() * x[masks[:, :3]].softmax(-1)
    places = torch.where(masks[:, 0] | ~masks[:, 0])[0]
    w = torch.zeros(4, 3, 8)
    w[torch.tensor([True, False, True, True])] = rows
    w[torch.tensor([False, True, False, False])] = rows[:1] * 2
    v = torch.zeros(5, 4)
    v[MASKS.T] = torch.masked_select(x[:, 0, :5].T, MASKS.T) * 2
    return *outputs, z, F.pad(places, (0, 6 - places.size(0)), value=-1), w, v


@case(
    "complex_tables",
    r(2, 5, 3, 8),
    table=torch.polar(torch.rand(5, 4) + 0.5, r(5, 4)),
    scale=nn.Parameter(torch.complex(r(6), r(6))[::2][:, None].expand(3, 4).contiguous()),
    decompose=False,
)
def complex_tables(self, x):
    z = torch.view_as_complex(x.reshape(2, 5, 3, 4, 2))
    turned = z * self.table.to("cpu")[None, :, None] * self.scale
    first, rest = self.table.split([1, 3], 1)
    lifted = torch.tensor([1 + 2j, -0.5j])
    whole = torch.cat([rest.view(5, 1, 3).expand(5, 2, 3), rest.unsqueeze(1)], 1).clone()
    return (
        torch.view_as_real(turned).flatten(3),
        torch.view_as_real(self.table.T[1:3]),
        (z[..., :2] * lifted).imag,
        torch.view_as_real(whole + first[..., None]),
    )


@refused(r(3, 4))
def counted_sum(self, x):
    return x[x > 0].sum()


@refused(r(3, 4))
def counted_number(self, x):
    return x.flatten()[x.flatten().nonzero()[:, 0]] * x.nonzero().size(0)


@refused(r(3, 4))
def complex_joined_with_real(self, x):
    return torch.cat([torch.complex(x, x), x]).abs()


@refused(r(3, 4))
def nonzero(self, x):
    return x.nonzero()


@refused(r(3, 4))
def mask_index(self, x):
    return x[x > 0]


@refused(r(3, 4))
def unknown(self, x):
    return torch._standard_gamma_grad(x, x), torch.hash_tensor(x), torch.hash_tensor(x * 2)


@refused(torch.randn(3, dtype=torch.complex64))
def complex_input(self, x):
    return x * 2


@refused(r(3, 4))
def item(self, x):
    return x * x.sum().item()


@refused(r(3, 4))
def buffer_written_through_copy_or_view(self, x):
    self.kept.t().reshape(-1).add_(1)
    return self.kept * 2 + x


@refused(r(3, 4))
def written_through_copy_or_view(self, x):
    a = x + 1
    a.t().reshape(2, 6).add_(1)
    return a * 2


@refused(r(3, 4))
def dropout_in_training(self, x):
    return F.dropout(x, 0.5, True)


@case(
    "weight_norms",
    r(4, 3),
    r(4, 3),
    V=nn.Parameter(r(2, 3, 4)),
    G=nn.Parameter(r(2, 1, 1)),
    H=nn.Parameter(r(1, 1, 4)),
)
def weight_norms(self, x, y):
    return (
        torch._weight_norm(self.V, self.G),
        torch._weight_norm(self.V, self.H, 2),
        torch._weight_norm(self.V, self.G[0, 0, 0], -1),
        torch._weight_norm(x, y[:, :1]),
        torch.vdot(x[0], y[1]),
    )


@case("half_products", r(2, 3, 4).half() * 200, r(2, 4, 5).half() * 200, r(2, 3, 5).half() * 200)
def half_products(self, a, b, x):
    # The products are beyond what a half holds, and cancel against what is added.
    scaled = torch.baddbmm(x, a, b, beta=2, alpha=0.01)
    product = (a[0].float() @ b[0].float()).div(64).half()
    return (
        scaled,
        torch.addmm(x[0], a[0], b[0], beta=0.5, alpha=0.01),
        torch.addmm(-product, a[0] / 8, b[0] / 8),
        torch.baddbmm(-product.expand(2, 3, 5), a / 8, b / 8),
    )


@case("half_squares", (r(4, 512) * 12).half(), (r(4, 512) * 12).half(), decompose=False)
def half_squares(self, x, y):
    # Squares that overflow f16, which PyTorch accumulates in f32.
    x, y = x + 100, y - 100
    return (
        x / x.norm(),
        F.normalize(x, dim=-1),
        F.cosine_similarity(x, y, dim=-1),
        F.pairwise_distance(x, y),
        torch.linalg.vector_norm(y, dim=-1),
        torch.linalg.vector_norm(y, 3, dim=0),
        (x * 20).var(-1),
        (x * 20).std(-1),
        *torch.var_mean(x * 20, -1),
        x.bfloat16().div(300).exp2(),
        torch.logsumexp(x, -1),
        F.mish(x.bfloat16() / 50),
    )


@case(
    "powers",
    torch.tensor([1, -1, 2, 0, -3, 1, -1]),
    torch.tensor([-3, -3, -1, 3, -2, 70, 71]),
    decompose=False,
)
def powers(self, a, b):
    big = (a + 70000).int()
    return (
        torch.pow(a, b),
        torch.pow(-1, b),
        torch.pow(1, b),
        torch.pow(2, b),
        torch.pow(a.int(), b.int()),
        torch.pow(a.to(torch.int8), b.to(torch.int8)),
        big * big,
    )


NAN, INF = float("nan"), float("inf")


@case(
    "edges",
    torch.tensor([[0.0, 0.2, 0.45, 0.5, 0.55, 0.7, 1.0, 2.0, -1.0, NAN, INF, -INF]]),
    torch.tensor([[-1, 0, 3, -12]]),
    decompose=False,
)
def edges(self, x, i):
    return (
        torch.logit(x, 0.6),
        torch.logit(x, 0.3),
        torch.logit(x, 1.2),
        torch.logit(x, -0.1),
        torch.sign(x),
        torch.sgn(x),
        torch.take_along_dim(x, i, 1),
        torch.take_along_dim(x, i % 5, 1),
        torch.div(x, 0.1, rounding_mode="trunc"),
        torch.div(x, 0.1, rounding_mode="floor"),
        torch.div(x, x - x, rounding_mode="floor"),
        torch.fmod(x * 1e8, 3.0),
        torch.remainder(x, -0.3),
    )


@case("scatters", r(3, 5), ii(3, 2, 4), r(2, 4), decompose=False)
def scatters(self, x, i, v):
    y = x.clone()
    y[:, i[0]] = v[0, :1]
    y[i[0, :1], :, None] *= 2
    return (
        x.scatter(0, i, v),
        x.scatter(0, i, 2.5),
        x.scatter_add(0, i, v),
        x.scatter_reduce(0, i, v, "amax"),
        x.scatter_reduce(0, i, v, "mean", include_self=False),
        x.index_add(1, i[0], x[:, :4], alpha=0.5),
        x.index_fill(0, i[1, :2], 7.0),
        x.index_copy(1, torch.tensor([4, 0]), x[:, :2]),
        x.index_put((i[0], i[1]), v[0]),
        y,
        torch.where(x > 0, x, 0).masked_scatter(x > 0, x.flatten()),
        torch.masked_fill(x, x > 0, 3.0),
        x.index_put((x > 0.5,), torch.tensor(9.0)),
        torch.slice_scatter(x, v[:, :3].sum(0, keepdim=True).expand(3, 3), 1, 0, 5, 2),
    )


@case("orders", r(3, 6), r(3, 2), dynamic=({0: S}, {0: S}), second=(r(5, 6), r(5, 2)), decompose=False)
def orders(self, x, v):
    s = x.sort(dim=-1, descending=True)
    return (
        *s,
        *x.topk(3),
        *x.topk(2, largest=False),
        x.argsort(0),
        *x.median(-1),
        *x.kthvalue(2, -1),
        torch.searchsorted(x.sort(-1).values, v),
        torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0]), right=True),
        x.histc(5, -2.0, 2.0),
        *x.cummax(1),
        x.cumprod(1),
        x.logcumsumexp(0),
        x.quantile(0.3, dim=1),
    )


@case("windows", r(2, 4, 7, 9), r(1, 24, 63), decompose=False)
def windows(self, x, c):
    return (
        *F.max_pool2d(x, 3, 2, 1, return_indices=True),
        *F.max_pool2d(x, 2, 2, 0, ceil_mode=True, return_indices=True),
        *F.adaptive_max_pool2d(x, (3, 4), return_indices=True),
        F.unfold(x, 3, padding=1, dilation=2),
        F.fold(c, (7, 9), (2, 3), padding=(1, 1), dilation=(2, 1)),
        x.unfold(2, 3, 2),
        F.pad(x, (2, 1, 3, 0), mode="circular"),
        F.pad(x, (2, -1, -1, 3), mode="reflect"),
        F.grid_sample(x, x[:, :2, :4, :4].permute(0, 2, 3, 1), align_corners=False),
        F.grid_sample(x, x[:, :2, :4, :4].permute(0, 2, 3, 1), "bicubic", "reflection", True),
    )


@case("diagonals", r(3, 4, 4), r(4), decompose=False)
def diagonals(self, x, v):
    return (
        x.diagonal(1, -2, -1),
        torch.diag(v, -1),
        torch.diag_embed(x[0], 1, 0, 2),
        x[0].trace(),
        torch.block_diag(x[0], v),
        torch.as_strided(x, (2, 3), (5, 2), 3),
        torch.rot90(x, 1, (1, 2)),
        torch.cdist(x[0], x[1]),
        torch.cross(x[:, :3], x[:, 1:], dim=1),
        torch.atan2(x, v),
        torch.asinh(x),
        torch.special.erfinv(torch.tanh(x)),
        torch.lgamma(x),
        torch.hypot(x, v),
    )


@case(
    "caches",
    r(1, 2, 3, 4),
    torch.tensor([1, 4, 5]),
    keys=torch.zeros(1, 2, 6, 4),
    values=torch.zeros(1, 2, 6, 4),
)
def caches(self, x, position):
    self.keys.index_copy_(2, position, x)
    self.values[:, :, position] = x
    self.values[:, :, ::2] *= 2
    return self.keys.sum(-1), self.values.sum(-1)


@case("rotary", r(2, 5, 3, 8), decompose=False)
def rotary(self, x):
    angles = torch.outer(torch.arange(5).float(), torch.tensor([1.0, 0.5, 0.1, 0.01]))
    turns = torch.polar(torch.ones_like(angles), angles)[None, :, None]
    z = torch.view_as_complex(x.reshape(2, 5, 3, 4, 2))
    y = torch.view_as_real(z * turns).flatten(3)
    w = torch.cat([z, z.conj()], 1) + 1.5
    return y, w.abs(), w.angle(), (z / turns).real, (z.transpose(1, 2) * 2).imag, torch.view_as_real(w.sum(1))


@case("spectra", r(2, 6, 20), dynamic=({0: S},), second=(r(3, 6, 20),), decompose=False)
def spectra(self, x):
    half = torch.fft.rfft(x, norm="ortho")
    return (
        torch.fft.fft2(x).real,
        half.abs(),
        torch.fft.irfft(half, 20, norm="ortho"),
        torch.fft.irfft(half * 0.5),
        torch.fft.ifft(x, 7, 1).imag,
        torch.stft(x[:, 0], 8, 4, window=torch.hann_window(8), return_complex=True).abs(),
    )


@case("bags", r(3, 9), ii(9, 7), r(7), table=nn.Parameter(r(9, 4)), decompose=False)
def bags(self, x, ids, weights):
    starts = torch.tensor([0, 3, 3, 5])
    return (
        F.embedding_bag(ids, self.table, starts, mode="sum", per_sample_weights=weights),
        F.embedding_bag(ids, self.table, starts, mode="mean", padding_idx=2),
        F.embedding_bag(ids, self.table, starts, mode="max"),
        *torch.native_layer_norm(x, (9,), None, None, 1e-5),
        *torch.native_group_norm(x[None], None, None, 1, 3, 9, 3, 1e-5),
        F.interpolate(x[None, None], (5, 4), mode="bicubic"),
        F.interpolate(x[None, None], scale_factor=1.7, mode="nearest-exact"),
        torch.nonzero_static(x > 0.5, size=6),
    )


@case("control", r(3, 4), r(4), first=nn.Linear(4, 4), other=nn.Linear(4, 4), decompose=False)
def control(self, x, h):
    chosen = torch.cond(x.sum() > 0, lambda x: self.first(x), lambda x: self.other(x) + 1, (x,))
    turned = torch.cond(x.sum() < 0, lambda x: self.first(x), lambda x: self.other(x) + 1, (x,))
    rows = higher_order_map(lambda a, b: a * b + 1, x, h)
    return chosen, turned, rows, *scan(lambda c, a: (c * 0.5 + a, (c + a).sin()), h, x)


@case(
    "standardised",
    r(2, 3, 5, 5),
    weight=nn.Parameter(r(6, 3, 2, 2)),
    gain=nn.Parameter(r(6)),
    decompose=False,
)
def standardised(self, x):
    flat, gain = self.weight.reshape(1, 6, -1), self.gain * 0.3
    weight = F.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0, eps=1e-5)
    return F.conv2d(x, weight.reshape_as(self.weight)), F.batch_norm(x, None, None, training=True)


def counted(step, x, rounds, first=None):
    """`step` applied to `x` as often as `rounds` says, counted by a tensor."""
    first = torch.zeros((), dtype=torch.int64) if first is None else first
    return while_loop(lambda i, _: i < rounds, lambda i, x: (i + 1, step(x)), (first, x))


@case("while_loops", r(2, 4), fc=nn.Linear(4, 4), decompose=False)
def while_loops(self, x):
    count, deep = counted(lambda x: torch.tanh(self.fc(x)), x, 3)
    _, halved = counted(lambda x: x * 0.5, x, 7, first=torch.tensor(5))
    return count, deep, halved, counted(lambda x: x + 1, x, 0)[1]


BOXES = torch.tensor(
    [[0, 0.5, 1.0, 4.5, 5.0], [1, -1.5, 2.0, 3.0, 9.0], [1, 2.0, 2.0, 2.2, 2.1], [0, 0.0, 0.0, 0.0, 0.0]]
)


@case(
    "regions",
    r(2, 4, 6, 5),
    BOXES,
    r(2, 2 * 2 * 4, 5, 4),
    r(2, 2 * 4, 5, 4),
    w=nn.Parameter(r(6, 2, 2, 2)),
    decompose=False,
)
def regions(self, x, boxes, offset, mask):
    aligned = torchvision.ops.roi_align(x, boxes, (3, 2), 0.75, sampling_ratio=2, aligned=True)
    old = torchvision.ops.roi_align(x, boxes, 2, 1.0, sampling_ratio=3)
    moved = torchvision.ops.deform_conv2d(x, offset * 2, self.w, mask=mask.sigmoid())
    return aligned, old, moved, torchvision.ops.deform_conv2d(x, offset[:, :8], self.w)


@case("systems", r(2, 4, 4), r(2, 4, 3), r(4), r(5, 3), r(7, 7), decompose=False)
def systems(self, a, b, v, tall, large):
    spd = a @ a.mT + 3 * torch.eye(4)
    lower = torch.linalg.cholesky(spd)
    lu, pivots = torch.linalg.lu_factor(a)
    qr = torch.linalg.qr(tall)
    packed, tau = torch.geqrf(tall)
    return (
        torch.linalg.solve(a, b),
        torch.linalg.solve(a, v),
        torch.linalg.solve(a, b.mT, left=False),
        torch.linalg.inv(a),
        *torch.linalg.inv_ex(torch.ones(3, 3))[1:],
        lower,
        torch.linalg.cholesky(spd, upper=True),
        *torch.linalg.cholesky_ex(a - a.mT)[1:],
        torch.cholesky_solve(b, lower),
        torch.cholesky_inverse(lower),
        lu,
        pivots,
        *torch.linalg.lu(tall),
        *torch.lu_unpack(lu, pivots),
        torch.linalg.lu_solve(lu, pivots, b, adjoint=True),
        torch.linalg.solve_triangular(a.triu(), b, upper=True),
        *qr,
        *torch.linalg.qr(tall.mT, mode="complete"),
        torch.linalg.householder_product(packed, tau),
        torch.ormqr(packed, tau, tall, transpose=True),
        *torch.linalg.slogdet(large),
        torch.linalg.det(large),
        torch.logdet(spd),
        torch.linalg.matrix_power(a, -3),
        torch.linalg.matrix_power(a, 5),
        torch.linalg.tensorsolve(large[:4, :4].reshape(2, 2, 4), v.reshape(2, 2)),
    )


@case("spectra_of_matrices", r(2, 4, 3), r(4, 4), decompose=False)
def spectra_of_matrices(self, x, square):
    symmetric = square @ square.mT
    thin = square[:, :2] @ square[:2]
    u, h = torch.linalg.polar(x)
    return (
        torch.linalg.svdvals(x),
        torch.linalg.svd(x)[1],
        torch.linalg.eigvalsh(symmetric),
        torch.linalg.eigh(square, UPLO="U")[0],
        torch.linalg.pinv(x),
        torch.linalg.pinv(thin),
        torch.linalg.pinv(symmetric, hermitian=True),
        torch.linalg.matrix_rank(thin),
        torch.linalg.matrix_rank(x, atol=0.5),
        torch.linalg.cond(square),
        torch.linalg.cond(square, 1),
        torch.linalg.matrix_norm(x, 2),
        torch.linalg.matrix_norm(x, -2, keepdim=True),
        torch.linalg.matrix_norm(x, "nuc", dim=(0, 2)),
        u,
        h,
    )


@case(
    "matrix_exponentials",
    r(5, 5) * 8,
    r(3, 4, 4) * torch.tensor([1e-3, 1.0, 5.0])[:, None, None],
    r(0, 0),
    r(40) * 12,
)
def matrix_exponentials(self, one, several, none, x):
    x = torch.cat([x, torch.tensor([0.0, 14.5, -30.0, float("nan")])])
    return (
        torch.matrix_exp(one),
        torch.linalg.matrix_exp(several),
        torch.matrix_exp(none),
        torch.matrix_exp(torch.diag(torch.tensor([-1e3, 0.5]))),
        torch.special.bessel_j0(x),
        torch.special.bessel_j1(x),
        torch.special.airy_ai(x),
    )


@case("special_functions", r(40) * 6, torch.rand(40) * 30, torch.rand(40) * 20, ii(9, 40), decompose=False)
def special_functions(self, x, y, a, n):
    s = torch.special
    mantissa, exponent = torch.frexp(torch.cat([x, torch.tensor([0.0, 1.0, -2.0, 1e-42])]))
    steps = torch.tensor([0.0, 1.0, -1.0, 1e-45, 3.4028235e38, float("inf")])
    return (
        s.bessel_y0(y),
        s.bessel_y1(y),
        s.modified_bessel_k0(y),
        s.modified_bessel_k1(y),
        s.scaled_modified_bessel_k0(y),
        s.scaled_modified_bessel_k1(n),
        s.spherical_bessel_j0(x),
        s.hermite_polynomial_h(x, n),
        s.hermite_polynomial_he(x, n),
        s.laguerre_polynomial_l(y, n),
        s.legendre_polynomial_p(x / 20, n),
        s.legendre_polynomial_p(x / 20, 3),
        torch.igamma(a, y),
        torch.igammac(a, y),
        torch.igamma(a * 1000 + 5000, y * 1000),
        mantissa,
        exponent,
        torch.nextafter(steps, -steps),
        torch.nextafter(steps, torch.full_like(steps, 2)),
        torch.nextafter(x.half(), y.half()),
    )


@case("windows_of_integers", ii(9, 2, 4, 6, 5), ii(9, 6, 2, 3, 2) - 4, ii(5, 6), decompose=False)
def windows_of_integers(self, x, w, b):
    return (
        F.conv2d(x, w, b, stride=2, padding=1, dilation=(1, 2), groups=2),
        F.conv2d(x, w, padding="same", groups=2),
        F.conv1d(x[0, :, 0], w[:, :, :, 0], groups=2),
        F.conv_transpose2d(
            torch.cat([x, x[:, :2]], 1), w, stride=2, padding=1, output_padding=(1, 0), dilation=2, groups=3
        ),
        F.avg_pool2d(x - 4, 3, 2, 1, ceil_mode=True),
        F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
        F.avg_pool1d(x[:, :, 0], 2),
        F.relu6(x),
    )


@case("counts", r(4, 5), torch.tensor([2, 0, 3]), r(3, 8, 3), decompose=False)
def counts(self, x, lengths, images):
    rows = torch.cat([x, x[:1]])
    holes = torch.where(x > 0.5, torch.nan, x)
    return (
        *torch.histogram(x, 4),
        *torch.histogram(x, torch.tensor([-1.0, 0.0, 0.3, 1.0]), weight=x.abs(), density=True),
        *torch.histogramdd(rows[:, :2], [2, 3])[:1],
        torch.segment_reduce(rows[:5], "mean", lengths=lengths),
        torch.segment_reduce(rows[:5], "max", lengths=lengths, initial=0.1),
        torch.segment_reduce(rows, "prod", offsets=torch.tensor([0, 2, 5])),
        *torch.gradient(x, spacing=0.5),
        *torch.gradient(x, dim=1, edge_order=2, spacing=(torch.tensor([0.0, 1.0, 1.5, 3.0, 4.0]),)),
        torch.nanquantile(holes, torch.tensor([0.1, 0.6]), dim=1),
        torch.nanquantile(holes, 0.5),
        torch.einsum("iij->ij", x[:, :4, None].expand(4, 4, 3)),
        torch.einsum("bii->b", images[:, :3]),
        F.multilabel_margin_loss(x, torch.tensor([[1, 0, -1, 2, 3], [4, 2, 0, -1, -1]] * 2)),
        F.interpolate(images[None], (3, 2), mode="bilinear", antialias=True),
        torch.linspace(-2.0, 4.9, 1, dtype=torch.int64),
        x.bool().prod(1, dtype=torch.bool),
    )


@case("trained_norms", r(4, 3, 5), mean=torch.zeros(3), var=torch.ones(3), decompose=False)
def trained_norms(self, x):
    y = F.batch_norm(x, self.mean, self.var, training=True, momentum=0.3)
    return y, F.batch_norm(x, self.mean, self.var)


def main(wanted):
    for name, parts in CASES.items():
        if not wanted or name in wanted:
            write(name, *parts)
    (HERE / "refused").mkdir(exist_ok=True)
    for name, (model, inputs) in REFUSED.items():
        if not wanted or name in wanted:
            save(export(model.eval(), inputs, strict=False), HERE / "refused" / f"{name}.pt2")


if __name__ == "__main__":
    main(sys.argv[1:])
