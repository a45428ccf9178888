# The executor with the paged engine, for a CPU or for CUDA:
#   docker build -f deploy/images/executor.Dockerfile --target cpu -t weir/executor:0.1.0 .
#   docker build -f deploy/images/executor.Dockerfile --target cuda -t weir/executor-cuda:0.1.0 .
# TORCH_INDEX: where torch comes from, for instance PyTorch's index of CPU builds, a tenth of the size; unset: where all
# else does, and on x86-64 that build is CUDA's. Secrets as in service.Dockerfile.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS install
ARG TORCH_INDEX=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_CONSTRAINT=/src/constraints.txt
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY deploy/constraints/dev.txt constraints.txt
RUN python3 -m venv /pip && python3 -m venv --without-pip /opt/weir
# By itself and first: the largest layer, and it changes least.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    /pip/bin/pip --python /opt/weir/bin/python3 install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0
COPY pyproject.toml README.md LICENSE ./
COPY protos/weir protos/weir
COPY services/chassis services/chassis
COPY services/executor services/executor
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    /pip/bin/pip --python /opt/weir/bin/python3 install '.[executor,nats]'
# The native libraries, so that the image needs no compiler. They have a part for each instruction set.
RUN WEIR_NATIVE_CACHE=/native /opt/weir/bin/python3 -m weir_executor.native.build \
    && mkdir /opt/weir/native \
    && mv /native/copies-*.so /opt/weir/native/copies.so \
    && mv /native/kernels-*.so /opt/weir/native/kernels.so

FROM install AS install-cpu
# xgrammar's Python package asks for these, and we use its compiled module alone: 800 MB of the image.
RUN /pip/bin/pip --python /opt/weir/bin/python3 uninstall --yes triton transformers tokenizers huggingface_hub hf-xet

FROM ${PYTHON_IMAGE} AS runtime
RUN groupadd --gid 10001 weir \
    && useradd --uid 10001 --gid weir --no-create-home --home-dir /tmp --shell /usr/sbin/nologin weir \
    && install --directory --owner weir --group weir --mode 0700 /var/lib/weir
ENV PATH=/opt/weir/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
ENV WEIR_NATIVE_LIBRARIES=/opt/weir/native
ENV WEIR_EXECUTOR_HOST=0.0.0.0 WEIR_EXECUTOR_PORT=7702 WEIR_EXECUTOR_METRICS_PORT=9702
EXPOSE 7702 9702
STOPSIGNAL SIGTERM
# Weights may take minutes; until then a failed check does not count.
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=3 CMD ["python3", "-m", "weir_chassis.probe", "127.0.0.1:7702"]
ENTRYPOINT ["python3", "-m", "weir_executor"]

FROM runtime AS cpu
COPY --from=install-cpu /opt/weir /opt/weir
USER 10001:10001

FROM runtime AS cuda
# Triton compiles the stubs by which it launches kernels, when they are first launched.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --from=install /opt/weir /opt/weir
ENV WEIR_EXECUTOR_DEVICE=cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
