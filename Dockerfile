# 1: include the default model in the image. 0: download it into the volume on the first start.
ARG BAKE_MODEL=0


# KenLM's lmplz and build_binary, which build n-gram models. In a separate stage, so that only a change to these files
# triggers a rebuild.
FROM python:3.11-slim-bookworm AS kenlm

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends cmake g++ make zlib1g-dev \
        libboost-program-options-dev libboost-system-dev libboost-test-dev libboost-thread-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY constraints.txt ./
COPY ngram_models/__init__.py ngram_models/errors.py ngram_models/home.py ngram_models/tools.py superdraft/ngram_models/
RUN pip install --no-cache-dir "$(grep '^platformdirs==' constraints.txt)" \
    && python -m superdraft.ngram_models.tools --into /opt/kenlm \
    && strip /opt/kenlm/lmplz /opt/kenlm/build_binary


# The virtual environment, including the packages that must be compiled.
FROM python:3.11-slim-bookworm AS builder

# Package index for torch. The default has builds for the CPU. Empty: pip's own index, whose torch is for CUDA and
# several gigabytes larger.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Extras of Superdraft to install: "server", or "server,ray" for `superdraft serve --ray-replicas`.
ARG EXTRAS=server

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
# Set as environment variables, the constraints also apply to the packages that pip builds kenlm with.
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_CONSTRAINT="/src/constraints.txt /src/deploy/ray/constraints.txt" \
    PIP_BUILD_CONSTRAINT=/src/constraints.txt

# The slow steps, torch and kenlm, come before the sources, so that code changes do not repeat them.
COPY constraints.txt ./
COPY deploy/ray/constraints.txt deploy/ray/
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' constraints.txt)" \
    && /opt/venv/bin/pip wheel --no-deps --wheel-dir /wheels "$(grep '^kenlm==' constraints.txt)" \
    && /opt/venv/bin/pip install /wheels/kenlm-*.whl

COPY pyproject.toml README.md LICENSE ./
COPY server server
COPY decoding decoding
COPY ngram_models ngram_models
COPY client client
COPY benchmarks benchmarks
COPY evaluation evaluation
# torch's C++ headers and test programs are not needed at run time.
RUN /opt/venv/bin/pip wheel --no-deps --wheel-dir /wheels . \
    && /opt/venv/bin/pip install "$(echo /wheels/superdraft-*.whl)[$EXTRAS]" \
    && strip /opt/venv/lib/python3.11/site-packages/kenlm.*.so \
    && /opt/venv/bin/python -m superdraft.decoding.model.native \
    && torch=/opt/venv/lib/python3.11/site-packages/torch \
    && rm -rf "$torch/include" "$torch/test" \
    && find "$torch/bin" -type f ! -name torch_shm_manager -delete


# The runtime image, without compilers and with an unprivileged user.
FROM python:3.11-slim-bookworm AS runtime

# Libraries that lmplz is linked against.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libboost-program-options1.74.0 libboost-thread1.74.0 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf /var/log/* \
    && groupadd --gid 1000 superdraft \
    && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin superdraft \
    && install --directory --owner=superdraft --group=superdraft /var/lib/superdraft

COPY --from=kenlm /opt/kenlm /opt/kenlm
COPY --from=builder /opt/venv /opt/venv

# Models and all other downloads at run time go into the volume. The server listens on all interfaces, because 127.0.0.1
# in a container cannot be reached from outside. Without API keys it refuses to start unless this is explicitly allowed.
ENV PATH=/opt/venv/bin:/opt/kenlm:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    HF_HOME=/var/lib/superdraft/huggingface \
    SUPERDRAFT_HOME=/var/lib/superdraft \
    SUPERDRAFT_HOST=0.0.0.0

USER 1000:1000
WORKDIR /var/lib/superdraft
VOLUME ["/var/lib/superdraft"]
EXPOSE 8000

# The start period is long because the first start downloads the default model (93 MB) into the volume;
# the container's log says so. The request must not go through a proxy, which Docker's configuration may put into the
# environment.
HEALTHCHECK --interval=15s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open(f'http://127.0.0.1:{os.environ.get(\"SUPERDRAFT_PORT\", 8000)}/ready', timeout=4)"]

ENTRYPOINT ["superdraft"]
CMD ["serve"]


# The default model, verified.
FROM runtime AS model
RUN SUPERDRAFT_HOME=/tmp/home superdraft models pull smollm2-135m \
    && mv /tmp/home/models/smollm2-135m/*.gguf /tmp/smollm2-135m.gguf


FROM runtime AS with-model-0


FROM runtime AS with-model-1
COPY --from=model /tmp/smollm2-135m.gguf /opt/models/smollm2-135m.gguf
ENV SUPERDRAFT_MODEL=/opt/models/smollm2-135m.gguf \
    HF_HUB_OFFLINE=1


# hadolint ignore=DL3006
FROM with-model-${BAKE_MODEL}

# Passed in by the build. For the installed packages see pip's records in /opt/venv and Debian's in /var/lib/dpkg.
ARG VERSION=""
ARG REVISION=""
ARG CREATED=""
LABEL org.opencontainers.image.title="superdraft" \
      org.opencontainers.image.description="An autocomplete server: k drafts for the price of one" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11-slim-bookworm" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
