extern "C" int laurel_probe() { return 1; }
