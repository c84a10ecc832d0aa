//! What a transport promises the runtime: frames in, paced and fenced audio out.
