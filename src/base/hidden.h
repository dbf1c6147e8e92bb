// An object of a type that only a .cpp file knows, owned by one whose header many files include:
//
//   struct Workers;             in the class
//   Hidden<Workers> workers_;
//   workers_(new Workers(n))    in the .cpp file's constructor
//
// std::unique_ptr would do, but <memory> takes a compiler most of a second, and in a .cu file,
// whose front ends are four, over three.
#pragma once

namespace tamis {

template <typename T>
class Hidden {
 public:
  // Takes the object over; T must be complete here.
  explicit Hidden(T* object) : object_(object), destroy_([](T* o) { delete o; }) {
    static_assert(sizeof(T) > 0);
  }
  ~Hidden() { destroy_(object_); }
  Hidden(const Hidden&) = delete;
  Hidden& operator=(const Hidden&) = delete;

  T* operator->() { return object_; }
  const T* operator->() const { return object_; }

 private:
  T* object_;
  void (*destroy_)(T*);
};

}  // namespace tamis
