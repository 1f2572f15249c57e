# Stands in for the official image of PostgreSQL 15: Debian's server, and of the entry point what docker-compose.yml uses.
FROM automl-stand-in/debian:bookworm
# hadolint ignore=DL3008
RUN groupadd --system --gid 999 postgres \
    && useradd --system --uid 999 --gid 999 --home-dir /var/lib/postgresql postgres \
    && apt-get update && apt-get install --yes --no-install-recommends postgresql-common \
    && echo 'create_main_cluster = false' >> /etc/postgresql-common/createcluster.conf \
    && apt-get install --yes --no-install-recommends postgresql-15 \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o 999 -g 999 -m 0700 /var/lib/postgresql/data \
    && install -d -o 999 -g 999 -m 0775 /var/run/postgresql
ENV LANG=C.UTF-8 PATH=/usr/lib/postgresql/15/bin:/usr/sbin:/usr/bin:/sbin:/bin PGDATA=/var/lib/postgresql/data
COPY start-postgres /usr/local/bin/
VOLUME /var/lib/postgresql/data
STOPSIGNAL SIGINT
ENTRYPOINT ["/usr/local/bin/start-postgres"]
LABEL automl.stand-in=true
CMD ["postgres"]
