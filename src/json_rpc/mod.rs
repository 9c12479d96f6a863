//! json_rpc
