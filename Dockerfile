# exact_titan on NVIDIA GPUs.
#
#   docker build -t exact-titan .
#   docker run --gpus all --ipc=host -v "$PWD":/work exact-titan train Llama-3.1-8B-16k --nproc 8
#
# torch's wheels from PyPI bring CUDA's libraries. The image needs CUDA's compiler only to build flash-attn
# (--build-arg FLASH=yes, an hour of compilation). Attention in torch and the loss need no compiler.
ARG BASE=nvidia/cuda:13.0.2-devel-ubuntu24.04
FROM ${BASE}

ARG FLASH=no
ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv python3-dev gcc g++ git \
 && rm -rf /var/lib/apt/lists/*

RUN python3 -m venv /opt/exact-titan
ENV PATH=/opt/exact-titan/bin:$PATH

WORKDIR /opt/src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY exact_titan exact_titan
COPY train_configs train_configs
RUN pip install -c constraints.txt '.[export]'
RUN if [ "$FLASH" = yes ]; then pip install ninja packaging wheel && pip install --no-build-isolation '.[flash]'; fi
RUN exact-titan --version

WORKDIR /work
ENTRYPOINT ["exact-titan"]
CMD ["--help"]
