# Mayfly in a container: `docker compose up` on a host with KVM (docs/guide/compose.md).
#
# Targets: `mayfly`, the product; `squid`, the only way out of the profile `proxied`; `demo`, the
# simulated GitHub of the profile `demo`. The build needs BuildKit, the default since Docker 23, which
# Compose includes.
#
# The base images are pinned by version. To pin their content, pass a digest, for example
# BASE_IMAGE=debian@sha256:…. If no registry is reachable, scripts/container-bases builds replacements
# from the distribution's packages. Debian's packages are the newest of its stable release, so a rebuild
# brings security updates.
ARG BUILD_IMAGE=rust:1.95.0-slim-trixie
ARG BASE_IMAGE=debian:13.2-slim

FROM ${BUILD_IMAGE} AS build
WORKDIR /source
# Downloads and compiled dependencies stay in the builder's cache, not in the image. Sources are touched
# because Cargo compares modification times, and those of another checkout may be older.
ENV CARGO_HOME=/cache/cargo CARGO_TARGET_DIR=/cache/target
RUN --mount=type=bind,target=/source,rw --mount=type=cache,target=/cache \
    find . -type f -exec touch {} + \
    && bash -c '. scripts/lib.sh \
        && build_agent && install_vsock \
        && cargo build --quiet --locked --release --package mayfly --package mayfly-github-sim' \
    && install -D -t /out/bin /cache/target/release/mayfly \
    && install -D -t /out/libexec/mayfly /cache/target/libexec/mayfly/* \
    && install -D -t /out/demo /cache/target/release/mayfly-github-sim

FROM ${BASE_IMAGE} AS mayfly
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="Mayfly" \
      org.opencontainers.image.description="A fresh microVM for every CI job, destroyed afterwards" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0 OR MIT"
# QEMU boots microVMs; mmdebstrap, e2fsprogs, kmod, and uidmap build images. Nothing else is needed.
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        ca-certificates debian-archive-keyring e2fsprogs kmod libcap2-bin mmdebstrap nftables \
        qemu-system-x86 qemu-utils uidmap >/dev/null \
    # One capability for each of the two programs, instead of all of root's.
    && chmod u-s /usr/bin/newuidmap /usr/bin/newgidmap \
    && setcap cap_setuid=ep /usr/bin/newuidmap && setcap cap_setgid=ep /usr/bin/newgidmap \
    && apt-get purge -y -qq libcap2-bin >/dev/null \
    # Keeps only the x86-64 system emulator and qemu-img, and removes the documentation.
    && cd /usr/bin && rm -f qemu-system-i386 qemu-system-x86_64-microvm qemu-io qemu-nbd \
        qemu-pr-helper qemu-storage-daemon qemu-vmsr-helper \
    && rm -rf /usr/share/locale/* /usr/share/info/* /usr/share/doc/* /usr/share/man/* \
        /var/lib/apt/lists/* /var/cache/* /var/log/* \
    # The range of user ids for an image's files during its build.
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
    # The package mirrors, which image builds use.
    && apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' \
        | sed -E 's|^[a-z+]+://([^/:]+).*|\1|' | sort -u >/etc/squid/mirrors.txt \
    && test -s /etc/squid/mirrors.txt \
    && rm -rf /usr/share/locale/* /usr/share/doc/* /usr/share/man/* /var/lib/apt/lists/* \
        /var/cache/* /var/log/*
COPY packaging/container/squid.conf packaging/container/allowed.txt /etc/squid/
USER proxy
EXPOSE 3128
ENTRYPOINT ["squid", "-N", "-f", "/etc/squid/squid.conf"]

FROM mayfly AS demo
COPY --from=build /out/demo /usr/local/bin
COPY packaging/container/demo.toml /etc/mayfly/demo.toml
COPY tests/github-sim/image /usr/local/share/mayfly/tests/github-sim/image
COPY tests/github-sim/runner /usr/local/share/mayfly/tests/github-sim/runner
