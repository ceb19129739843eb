"""The command line, one module for each group of verbs: settings in, core called, text out."""

from __future__ import annotations

from invoke.collection import Collection

from . import (
    audit,
    config,
    credentials,
    lifecycle,
    maintenance,
    network,
    setup,
    trust,
    undo,
    work,
)

ns = Collection(
    lifecycle.start,
    lifecycle.stop,
    lifecycle.restart,
    lifecycle.status,
    lifecycle.destroy,
    work.connect,
    work.git,
    work.push,
    work.fetch,
    work.clean,
    work.clean_all,
    undo.undo,
    lifecycle.mount,
    lifecycle.unmount,
    credentials.secrets,
    network.network,
    network.network_log,
    maintenance.provision,
    maintenance.tools,
    maintenance.refresh_home,
    maintenance.bake,
    maintenance.prune,
    maintenance.render,
    maintenance.logs,
    maintenance.ssh_config,
    setup.setup,
    setup.doctor,
    audit.audit,
    config.config_show,
    config.init,
    trust.trust,
)
