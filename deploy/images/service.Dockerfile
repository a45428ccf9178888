# The four services that need no engine, a target each:
#   docker build -f deploy/images/service.Dockerfile --target router -t weir/router:0.1.0 .
# An image holds its service, the chassis and the contracts, and the versions that the tests ran with; a stray import of
# another service fails in it by absence. An index or an authority of one's own comes as a secret:
#   --secret id=pip.conf,src=pip.conf --secret id=ca.pem,src=ca.pem       (pip.conf: cert = /run/secrets/ca.pem)
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS source
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_CONSTRAINT=/src/constraints.txt
WORKDIR /src
COPY deploy/constraints/dev.txt constraints.txt
# Two environments: pip's own stays behind.
RUN python3 -m venv /pip && python3 -m venv --without-pip /opt/weir
COPY pyproject.toml README.md LICENSE ./
COPY protos/weir protos/weir
COPY services/chassis services/chassis

FROM source AS install-tokenizer
COPY services/tokenizer services/tokenizer
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    /pip/bin/pip --python /opt/weir/bin/python3 install '.[tokenizer,nats]'

FROM source AS install-kvstore
COPY services/kvstore services/kvstore
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    /pip/bin/pip --python /opt/weir/bin/python3 install '.[kvstore,nats]'

FROM source AS install-postprocess
COPY services/postprocess services/postprocess
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    /pip/bin/pip --python /opt/weir/bin/python3 install '.[postprocess,nats]'

FROM source AS install-router
COPY services/router services/router
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    /pip/bin/pip --python /opt/weir/bin/python3 install '.[router,nats,redis]'

FROM ${PYTHON_IMAGE} AS runtime
# A number, so that Kubernetes can see that it is not root's.
RUN groupadd --gid 10001 weir \
    && useradd --uid 10001 --gid weir --no-create-home --home-dir /tmp --shell /usr/sbin/nologin weir \
    && install --directory --owner weir --group weir --mode 0700 /var/lib/weir
ENV PATH=/opt/weir/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 10001:10001
STOPSIGNAL SIGTERM

FROM runtime AS tokenizer
COPY --from=install-tokenizer /opt/weir /opt/weir
# hadolint ignore=DL3064
ENV WEIR_TOKENIZER_HOST=0.0.0.0 WEIR_TOKENIZER_PORT=7701 WEIR_TOKENIZER_METRICS_PORT=9701
EXPOSE 7701 9701
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python3", "-m", "weir_chassis.probe", "127.0.0.1:7701"]
ENTRYPOINT ["python3", "-m", "weir_tokenizer"]

FROM runtime AS kvstore
COPY --from=install-kvstore /opt/weir /opt/weir
ENV WEIR_KVSTORE_HOST=0.0.0.0 WEIR_KVSTORE_PORT=7703 WEIR_KVSTORE_METRICS_PORT=9703
EXPOSE 7703 9703
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python3", "-m", "weir_chassis.probe", "127.0.0.1:7703"]
ENTRYPOINT ["python3", "-m", "weir_kvstore"]

FROM runtime AS postprocess
COPY --from=install-postprocess /opt/weir /opt/weir
ENV WEIR_POSTPROCESS_HOST=0.0.0.0 WEIR_POSTPROCESS_PORT=7704 WEIR_POSTPROCESS_METRICS_PORT=9704
EXPOSE 7704 9704
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python3", "-m", "weir_chassis.probe", "127.0.0.1:7704"]
ENTRYPOINT ["python3", "-m", "weir_postprocess"]

FROM runtime AS router
COPY --from=install-router /opt/weir /opt/weir
ENV WEIR_ROUTER_HOST=0.0.0.0 WEIR_ROUTER_PORT=7700 WEIR_ROUTER_METRICS_PORT=9700
EXPOSE 7700 9700
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python3", "-m", "weir_chassis.probe", "127.0.0.1:7700"]
ENTRYPOINT ["python3", "-m", "weir_router"]
