"""Operands of a depthwise convolution, and PyTorch's result."""

import numpy as np
import torch
import torch.nn.functional as F


def operands(kernel_size, stride, height, width, channels=3, batch=4):
    rng = np.random.default_rng(kernel_size)
    out = batch, -(-height // stride), -(-width // stride), channels
    shapes = (batch, height, width, channels), (kernel_size, kernel_size, channels), out
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def torch_conv(x, kernel, stride, weight):
    x, kernel = (torch.tensor(np.asarray(a), requires_grad=True) for a in (x, kernel))
    y = F.conv2d(x.permute(0, 3, 1, 2), kernel.permute(2, 0, 1)[:, None], None, stride, kernel.shape[0] // 2,
                 groups=kernel.shape[-1]).permute(0, 2, 3, 1)
    (y * torch.tensor(weight)).sum().backward()
    return y.detach().numpy(), x.grad.numpy(), kernel.grad.numpy()
