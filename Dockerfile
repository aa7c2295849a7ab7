# Mayfly in a container: `docker compose up` on a host with KVM (docs/guide/compose.md).
#
# Targets: `mayfly`, the product; `squid`, the only way out of the profile `proxied`; `demo`, the
# simulated GitHub of the profile `demo`. Where no registry can be reached, BUILD_IMAGE and BASE_IMAGE
# may be stand-ins made from the distribution's packages (scripts/container-bases).
ARG BUILD_IMAGE=rust:1.95.0-slim-trixie
ARG BASE_IMAGE=debian:trixie-slim

FROM ${BUILD_IMAGE} AS build
WORKDIR /source
COPY . .
# One layer: what is compiled is thrown away with it.
RUN bash -c '. scripts/lib.sh \
    && build_agent && install_vsock \
    && cargo build --quiet --locked --release --package mayfly --package mayfly-github-sim' \
    && install -D -t /out/bin target/release/mayfly \
    && install -D -t /out/libexec/mayfly target/libexec/mayfly/* \
    && install -D -t /out/demo target/release/mayfly-github-sim \
    && rm -rf target

FROM ${BASE_IMAGE} AS mayfly
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="Mayfly" \
      org.opencontainers.image.description="A fresh microVM for every CI job, destroyed afterwards" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0 OR MIT"
# QEMU boots microVMs; mmdebstrap, e2fsprogs, kmod and uidmap build images; nothing else is needed.
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        ca-certificates debian-archive-keyring e2fsprogs kmod libcap2-bin mmdebstrap nftables \
        qemu-system-x86 qemu-utils uidmap >/dev/null \
    # The one right that each of the two needs, instead of all of root's.
    && chmod u-s /usr/bin/newuidmap /usr/bin/newgidmap \
    && setcap cap_setuid=ep /usr/bin/newuidmap && setcap cap_setgid=ep /usr/bin/newgidmap \
    && apt-get purge -y -qq libcap2-bin >/dev/null \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* /usr/share/doc/* /usr/share/man/* \
    # The range of user ids that an image's files belong to while it is built.
    && useradd --uid 1000 --user-group --no-create-home --home-dir /var/lib/mayfly mayfly \
    && install -d -o mayfly -g mayfly /var/lib/mayfly
COPY --from=build /out/bin /usr/local/bin
COPY --from=build /out/libexec /usr/local/libexec
COPY images /usr/local/share/mayfly/images
USER mayfly
ENV MAYFLY_STATE_DIR=/var/lib/mayfly
VOLUME /var/lib/mayfly
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["mayfly", "status"]
ENTRYPOINT ["mayfly"]
CMD ["serve"]

FROM ${BASE_IMAGE} AS squid
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends squid >/dev/null \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /usr/share/doc/* /usr/share/man/*
COPY packaging/container/squid.conf packaging/container/allowed.txt /etc/squid/
USER proxy
EXPOSE 3128
ENTRYPOINT ["squid", "-N", "-f", "/etc/squid/squid.conf"]

FROM mayfly AS demo
COPY --from=build /out/demo /usr/local/bin
COPY tests/github-sim/image /usr/local/share/mayfly/demo/image
COPY tests/github-sim/runner /usr/local/share/mayfly/demo/runner
