//! The strict form of a request (design, decision 1) and the client's address. Pure functions over what was received.

mod address;
mod form;
mod target;

pub use address::{ClientAddress, TrustedProxies, client_address};
pub use form::{FormFault, Form, Head, check_form, host_of};
pub use target::{PathFault, check_path};
