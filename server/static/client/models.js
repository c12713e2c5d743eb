// Types of the server's requests and responses. Fields have the names of the HTTP API.
export {};
