//! The strict form of a request (design, decision 1) and the client's address. Pure functions over what was received.

mod address;
mod form;
mod raw;
mod target;

pub use address::{ClientAddress, HOPS_MAX, TrustedProxies, client_address, is_private, unmapped_network};
pub use form::{FEDERATION_JWT_LENGTH_MAX, FIELDS_MAX, Form, FormFault, Head, check_form, host_of};
pub use target::{PathFault, check_path};
