//! What the machine reports, as lines of the log.

use crate::replica::message::Report;

/// Logs a report.
pub(super) fn log(report: &Report) {
    match report {
        Report::Lost(device) => {
            tracing::warn!(device = %device.short(), "a holder has been away for long: its blocks get other holders");
        }
        Report::Failed(device, block) => {
            tracing::warn!(device = %device.short(), %block, "a holder does not have what it promised to keep");
        }
        Report::Condemned(device) => {
            tracing::error!(device = %device.short(), "a holder failed again and again: it is not relied on for a while");
        }
        Report::Full(device) => tracing::info!(device = %device.short(), "a holder has no room left"),
        Report::GuestRefused(device, here, there) => tracing::info!(
            device = %device.short(), here, there,
            "nothing more is kept for a guest: it has `here` bytes here and keeps `there` bytes for this device, or guests have all that they may"
        ),
        Report::Expired(device, leases) => {
            tracing::info!(device = %device.short(), leases, "leases ended that their owner did not renew");
        }
        Report::TooFewForGroups { shards, possible } => {
            tracing::info!(
                shards,
                possible,
                "fewer other computers keep blocks than a group has shards: blocks are replicated one by one"
            );
        }
        Report::GroupEnds { shards, have } => {
            tracing::info!(
                shards,
                have,
                "groups cannot be whole any more: their blocks are replicated one by one"
            );
        }
        Report::TooFewZones { wanted, possible } => {
            tracing::info!(
                wanted,
                possible,
                "fewer other computers keep blocks than replicas are wanted"
            );
        }
    }
}
