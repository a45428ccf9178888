# The executor with TensorRT-LLM, on NVIDIA's image of it:
#   docker build -f deploy/images/executor-trtllm.Dockerfile -t weir/executor-trtllm:0.1.0 .
# Or on another CUDA 13 image of theirs, with the wheel from their index, which is named when it is wanted:
#   --build-arg BASE_IMAGE=nvcr.io/nvidia/pytorch:26.02-py3 --build-arg TRTLLM_INDEX=https://…
# Secrets as in service.Dockerfile. Built on a stand-in alone (make image-trtllm-check): NVIDIA's registry was not at hand.
ARG TRTLLM_VERSION=1.2.1
ARG BASE_IMAGE=nvcr.io/nvidia/tensorrt-llm/release:${TRTLLM_VERSION}

FROM ${BASE_IMAGE}
ARG TRTLLM_VERSION
ARG TRTLLM_INDEX=
USER 0
# For an engine on several nodes mpirun reaches the others by ssh. NVIDIA's images have a compiler; another may not.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ openssh-client openssh-server && rm -rf /var/lib/apt/lists/*
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    if [ -n "$TRTLLM_INDEX" ]; then \
        python3 -m pip install --extra-index-url "$TRTLLM_INDEX" "tensorrt_llm==$TRTLLM_VERSION"; \
    fi
WORKDIR /src
COPY deploy/constraints/trtllm.txt constraints.txt
COPY deploy/images/check_pins.py ./
COPY pyproject.toml README.md LICENSE ./
COPY protos/weir protos/weir
COPY services/chassis services/chassis
COPY services/executor services/executor
# In the engine's own environment, which stays as it is: what it pins is not ours to change.
# hadolint ignore=DL3013
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    PIP_CONSTRAINT=/src/constraints.txt python3 -m pip install '.[trtllm,nats]' \
    && python3 check_pins.py tensorrt_llm "weir[trtllm,nats]" \
    && rm -rf /src
# What moves blocks to and from the kvstore, compiled ahead; it has a part for each instruction set.
RUN WEIR_NATIVE_CACHE=/native python3 -m weir_executor.native.build copies \
    && mkdir -p /opt/weir/native \
    && mv /native/copies-*.so /opt/weir/native/copies.so
COPY --chmod=0755 deploy/images/mpi/ /usr/local/bin/
RUN groupadd --gid 10001 weir \
    && useradd --uid 10001 --gid weir --no-create-home --home-dir /tmp --shell /bin/bash weir \
    && install --directory --owner weir --group weir --mode 0700 /var/lib/weir
WORKDIR /tmp
# Compilers of kernels keep what they made below their user's home.
ENV HOME=/tmp PYTHONUNBUFFERED=1 WEIR_NATIVE_LIBRARIES=/opt/weir/native
ENV WEIR_EXECUTOR_ENGINE=trtllm WEIR_EXECUTOR_HOST=0.0.0.0 WEIR_EXECUTOR_PORT=7702 WEIR_EXECUTOR_METRICS_PORT=9702
EXPOSE 7702 9702
USER 10001:10001
STOPSIGNAL SIGTERM
# The engine listens once it has answered a request of its own: weights, kernels and graphs may take most of an hour.
HEALTHCHECK --interval=10s --timeout=5s --start-period=3600s --retries=3 CMD ["python3", "-m", "weir_chassis.probe", "127.0.0.1:7702"]
ENTRYPOINT ["python3", "-m", "weir_executor"]
