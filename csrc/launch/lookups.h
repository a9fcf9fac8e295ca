// Lookups in Python dictionaries, kept where wanted, so that a later call knows in nanoseconds whether they would find
// the same objects again.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <vector>

namespace pytorch_ext {

class Lookups {
 public:
  explicit Lookups(bool keep = false) : keep_(keep) {}

  // The value under a key, or null.
  PyObject* find(PyObject* dict, PyObject* key) {
    PyObject* value = PyDict_GetItemWithError(dict, key);
    if (!value && PyErr_Occurred()) throw pybind11::error_already_set();
    if (keep_) entries_.push_back({own(dict), own(key), PyObject_Hash(key), own(value)});
    return value;
  }
  Py_ssize_t size(PyObject* dict) {
    if (keep_) sizes_.push_back({own(dict), PyDict_GET_SIZE(dict)});
    return PyDict_GET_SIZE(dict);
  }
  // The objects of a list.
  PyObject* items(PyObject* list) {
    if (keep_)
      for (Py_ssize_t i = 0; i <= PyList_GET_SIZE(list); i++)  // the end is kept too
        lists_.push_back({own(list), i, own(i < PyList_GET_SIZE(list) ? PyList_GET_ITEM(list, i) : nullptr)});
    return list;
  }
  bool unchanged() {
    if (!versions_are_same()) {
      for (const Entry& e : entries_)
        if (_PyDict_GetItem_KnownHash(e.dict.ptr(), e.key.ptr(), e.hash) != e.value.ptr()) return false;
      for (const Size& e : sizes_)
        if (PyDict_GET_SIZE(e.dict.ptr()) != e.size) return false;
      keep_versions();
    }
    for (const Item& e : lists_) {
      const bool inside = e.index < PyList_GET_SIZE(e.list.ptr());
      if ((inside ? PyList_GET_ITEM(e.list.ptr(), e.index) : nullptr) != e.value.ptr()) return false;
    }
    return true;
  }
  void forget() { entries_.clear(), sizes_.clear(), lists_.clear(), versions_.clear(); }

 private:
  using Owned = pybind11::object;
  static Owned own(PyObject* object) { return pybind11::reinterpret_borrow<Owned>(object); }
  struct Entry {
    Owned dict, key;
    Py_hash_t hash;  // of a tensor it is a call of Python
    Owned value;
  };
  struct Size {  // of a dictionary that has entries too
    Owned dict;
    Py_ssize_t size;
  };
  struct Item {
    Owned list;
    Py_ssize_t index;
    Owned value;
  };
  // A dictionary's version is another one after every change; Python 3.12 made it private.
  struct Version {
    PyObject* dict;  // an entry's
    uint64_t number;
  };
#if PY_VERSION_HEX < 0x030C0000
  static uint64_t version_of(PyObject* dict) { return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag; }
  bool versions_are_same() const {
    for (const Version& v : versions_)
      if (version_of(v.dict) != v.number) return false;
    return !versions_.empty();
  }
  void keep_versions() {
    versions_.clear();
    for (const Entry& e : entries_)
      if (std::none_of(versions_.begin(), versions_.end(), [&](auto& v) { return v.dict == e.dict.ptr(); }))
        versions_.push_back({e.dict.ptr(), version_of(e.dict.ptr())});
  }
#else
  bool versions_are_same() const { return false; }
  void keep_versions() {}
#endif
  bool keep_;
  std::vector<Entry> entries_;
  std::vector<Size> sizes_;
  std::vector<Item> lists_;
  std::vector<Version> versions_;
};

}  // namespace pytorch_ext
