//! Addresses as hyper has them.
//! Must not read one in a way of its own: [`Address`] does.

use dispatch_core::address::{Address, BadAddress};
use hyper::Uri;

use super::{NetError, NetFault};

impl From<BadAddress> for NetError {
    fn from(error: BadAddress) -> Self {
        Self::new(NetFault::Request, error.to_string())
    }
}

pub(crate) fn uri(address: &Address) -> Result<Uri, NetError> {
    let bad = |_| NetError::new(NetFault::Request, format!("{address}: it is no address"));
    address.to_string().parse().map_err(bad)
}

/// Of the settings.
pub(crate) fn parse(text: &str) -> Result<Uri, NetError> {
    uri(&Address::parse(text)?)
}
